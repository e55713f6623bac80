"""The commands, one file each: parse the options, call one public function, print its result.

Heavy modules are imported inside the commands, which keeps `--help` quick.
"""
