# SPDX-License-Identifier: GPL-2.0-or-later
"""What the manual of the ``blkmig`` command says besides the options, which come from the parser.

A section is a title and its parts: a text is a paragraph, a list of pairs is a list of terms. `Code` stands between
backquotes.
"""

from __future__ import annotations

Part = str | list[tuple[str, str]]
Section = tuple[str, list[Part]]

DESCRIPTION: list[Part] = [
    "`blkmig` copies disks while they are being written. It sends every block once, then sends again what was written "
    "meanwhile, round after round, and ends with a short pause in which the writers are held. The stream is that of "
    "QEMU's own migration, with its section `block`, so a QEMU up to 9.0 can be at either end; two blkmigs that can "
    "answer each other speak a section of their own.",
    "Results go to stdout; progress, notes and errors go to stderr. Options may stand anywhere after the command, but "
    "not behind a `--`. Sizes take K, M, G and T, which are powers of 1024.",
]

AFTER: list[Section] = [
    (
        "Addresses of a stream",
        [
            [
                (
                    "`tcp:HOST:PORT`",
                    "A TCP connection. HOST is a name, an IPv4 address or an IPv6 address in brackets. A receiver "
                    "without a HOST listens on every address; port 0 takes any free port, which is then announced.",
                ),
                (
                    "`tls:HOST:PORT`",
                    "The same with TLS: both ends have certificates, and check each other's (`--tls-certificates`), or "
                    "the sender has a token of the receiver's (`--token`).",
                ),
                ("`unix:PATH`", "A Unix stream socket."),
                ("`exec:COMMAND`", "The standard input or output of a shell command, as a pipe. "
                 "A command that runs a blkmig at the other end, as in `ssh HOST blkmig receive - ...` or "
                 "`ssh HOST blkmig send DISK -`, has one socket as both, and answers."),
                ("`fd:N`", "A descriptor that the command was given: a socket, a pipe or a file."),
                ("`file:PATH[,offset=N]`", "A file, from its byte N on. A comma in PATH is written twice."),
                ("`-`", "Standard output of a sender, standard input of a receiver."),
            ],
            "Over TCP, TLS, a Unix socket and a socket that was passed on, the target gives its word when everything "
            "is on stable storage, and the sender waits for it. A pipe, most commands and a file carry nothing back: "
            "there the sender is done when the channel has taken everything.",
        ],
    ),
    (
        "Names of disks",
        [
            "`NAME=` before a disk is what the other end calls it. Without it, a file is called as the file is, "
            "without its suffix.",
            [
                ("`PATH`", "A raw file or a block device. A comma in a path that does not exist is written twice."),
                ("`PATH,format=FORMAT`", "An image of another format, such as qcow2: `qemu-nbd` reads and writes it."),
                ("`PATH,base=FILE`", "An overlay on a base; `base-format=` says what the base is, if not raw."),
                ("`PATH,direct=on`", "Goes around the page cache. `locking=off` leaves QEMU's image locks out."),
                ("`nbd://HOST/NAME`", "An export of an NBD server; also nbds://, nbd+unix:// and nbds+unix://."),
                (
                    "`qemu:QMP_SOCKET`",
                    "The writable disks of a running QEMU or qemu-storage-daemon, as a source only. `,device=ID` and "
                    "`,node=NAME` choose some of them. `,nbd=ADDRESS` names its NBD server, `,export=ID` an export "
                    "through which others write, and `,read=nbd` has QEMU read also what could be read from its file.",
                ),
                (
                    "`dirtymap:MAP,disk=DISK,hold=COMMAND,release=COMMAND`",
                    "The disk of a program that marks what it writes in a dirty map, as a source only. The commands "
                    "pause that program and let it go on; `refuse=COMMAND` turns it away after a move.",
                ),
            ],
        ],
    ),
    (
        "Exit status",
        [
            [
                ("`0`", "Done. With `receive --verify`: and verified."),
                ("`1`", "Failed. Also: the work was done, and its result could not be written to stdout."),
                ("`2`", "The command line makes no sense, or an image is not of the format that was said."),
                (
                    "`3`",
                    "The contents differ, blocks are missing, or comparing was cut short when the target had "
                    "everything.",
                ),
                ("`4`", "The migration did not converge: within `--timeout` or `--max-rounds`, or in three pauses."),
                (
                    "`5`",
                    "The link was lost, the stream ended too early, or what came is not what was sent, by its "
                    "checksum.",
                ),
                ("`6`", "A disk is busy or locked."),
                (
                    "`7`",
                    "In doubt. The disk was to move and the target's word did not come, so the target may own the "
                    "disk; the message says where to look, on both sides. Later moves of such a disk are refused with "
                    "it. With `send --resume`: the target had taken the disk already. At the receiving end: the disk "
                    "is complete, and the source may not know; nobody knows whether it is stored that the disk was "
                    "taken; or a receiver that was killed had taken the disk, and it is complete now.",
                ),
                ("`129`, `130`, `143`", "Cancelled by HUP, by INT (Ctrl-C) and by TERM."),
            ],
            "A second signal does not disturb the clean-up; a third one ends the process at once. Where a file system "
            "does not answer, as that of a server which is stopped, the command ends five to ten seconds after the "
            "first signal, or after --timeout, or up to 25 seconds where a receiver is just taking the disks over. It "
            "says which file it is, and leaves what it cannot remove there.",
        ],
    ),
    (
        "Files",
        [
            [
                (
                    "`.NAME.blkmig-partial`",
                    "A target that is being made, beside NAME. It gets its own name when everything is on stable "
                    "storage. What a killed run has left is replaced when the same command is given again, unless the "
                    "source says `--resume`: then it goes on from there. Of a NAME that is too long for that, a part "
                    "stands there, and a digest.",
                ),
                (
                    "`.NAME.blkmig`",
                    "The session file of the disk NAME, beside it or in the folder of `--state-dir`, while it moves or "
                    "arrives. It says who has the disk, for whoever comes after a kill or a lost link. When all went "
                    "well it is gone; that of a source whose move has ended in doubt stays, see exit status 7.",
                ),
                (
                    "`.NAME.source.blkmig`",
                    "The key of a session, at the source, beside the first disk NAME or in the folder of "
                    "`--state-dir`. After a kill it is what `send --resume` needs to go on with a receiver that still "
                    "waits.",
                ),
                ("`DIR/NAME.raw`", "What `receive --into DIR` makes of the disk NAME."),
                ("`SOCKET.qmp`", "The QMP socket of `serve --nbd unix:SOCKET`, unless `--qmp` says another one."),
                (
                    "`cli/progress.schema.json`",
                    "In the folder of the Python package: what `--progress=json` writes, as a JSON schema.",
                ),
            ],
            "blkmig has no configuration file, and a run that ends well leaves none of these but the complete disks. "
            "While it sends the disks of a QEMU it keeps marks inside that QEMU, as objects whose names begin with "
            "`blkmig-`. They are gone when it ends, and `blkmig cleanup` undoes what a killed run has left.",
        ],
    ),
    (
        "Environment",
        [
            [
                ("`PATH`", "Where qemu-nbd, qemu-storage-daemon and the commands of `exec:` are looked for."),
                (
                    "`BLKMIG_PROGRESS`, `BLKMIG_METRICS`, `BLKMIG_METRICS_LISTEN`, `BLKMIG_REPORT`, `BLKMIG_LOG_JSON`, "
                    "`BLKMIG_STATE_DIR`",
                    "What `--progress`, `--metrics`, `--metrics-listen`, `--report`, `--log-json` and `--state-dir` "
                    "say, for commands that have the option and do not say it. An empty value is none.",
                ),
                (
                    "`NOTIFY_SOCKET`",
                    "Set by systemd for a unit of `Type=notify`: `receive` tells it when it listens, `send` when its "
                    "target is connected, and both how far they are.",
                ),
                (
                    "`JOURNAL_STREAM`",
                    "Set by systemd where stderr goes to the journal: then each line says its priority.",
                ),
                (
                    "`TERM`, `NO_COLOR`",
                    "A terminal called `dumb` or `unknown` gets plain lines; with `NO_COLOR` the live view has no "
                    "colours.",
                ),
                (
                    "`TMPDIR`",
                    "Where `demo` puts its disks, and where sockets to qemu-nbd are made, as a rule in /tmp. Also "
                    "where `send --verify` and `receive --verify` keep the hashes of large disks, else in /var/tmp.",
                ),
                (
                    "`HOME`",
                    "`nbds://` without `tls-certificates=` looks for a user's certificates in .pki/libnbd below it.",
                ),
                (
                    "`BLKMIG_ZERO_KERNEL`",
                    "The routine that looks for zeros, instead of the fastest one that this CPU has. A name that is "
                    "not known is an error that lists those that are.",
                ),
            ],
        ],
    ),
]

SEE_ALSO = [("qemu-img", 1), ("qemu-nbd", 8), ("qemu-storage-daemon", 1), ("nbdkit", 1), ("nbdcopy", 1)]
