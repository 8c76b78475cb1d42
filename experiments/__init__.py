"""Scripts over specjax; run from the checkout as `python -m experiments.NAME`."""

import os
import signal
import sys

# While `-m` imports what a script needs (seconds, much of it in extensions that make another error
# of it), Ctrl-C ends the process with what a shell expects and no traceback. `cli.script` takes
# over.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
