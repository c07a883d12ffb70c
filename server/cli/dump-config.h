/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_DUMP_CONFIG_H
#define NBDELTA_SERVER_CLI_DUMP_CONFIG_H

/*
 * nbdelta --dump-config: print how this program was built, and where it looks
 * for its parts, as lines KEY=VALUE in the order of their keys.  It loads the
 * modules, to tell whether they can be used.  Returns the exit status.
 */
int dump_config(void);

#endif /* NBDELTA_SERVER_CLI_DUMP_CONFIG_H */
