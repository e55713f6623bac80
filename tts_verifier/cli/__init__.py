"""The commands, one file each: parse, call one public function, print.

Heavy modules load inside the commands, so that `--help` stays quick.
"""
