"""What we ask: one function per named experiment. Copy `_template.py` to add one."""
