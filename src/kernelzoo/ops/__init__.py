"""The ops: formula, torch ops, Function, public function and checks, a file each."""
