/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_COMMANDS_H
#define NBDELTA_SERVER_CLI_COMMANDS_H

/* A row of the list of sub-commands, which ends with a NULL name. */
struct sub_command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about; /* a line */
};

/* The sub-commands.  argv[0] is the command's own name; they return the exit
 * status (cli.h). */
int cmd_amend(int argc, char **argv);
int cmd_backup(int argc, char **argv);
int cmd_backup_begin(int argc, char **argv);
int cmd_backup_end(int argc, char **argv);
int cmd_bitmap(int argc, char **argv);
int cmd_create(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_events(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_map(int argc, char **argv);
int cmd_measure(int argc, char **argv);
int cmd_metrics(int argc, char **argv);
int cmd_points(int argc, char **argv);
int cmd_prune(int argc, char **argv);
int cmd_qmp(int argc, char **argv);
int cmd_rebase(int argc, char **argv);
int cmd_resize(int argc, char **argv);
int cmd_restore(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_snapshot(int argc, char **argv);
int cmd_verify(int argc, char **argv);

/* The program under this name does what QEMU's does. */
#define STORAGE_DAEMON "qemu-storage-daemon"
int cmd_storage_daemon(int argc, char **argv);

#endif /* NBDELTA_SERVER_CLI_COMMANDS_H */
