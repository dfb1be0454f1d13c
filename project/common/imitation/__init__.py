"""Parts of the methods that imitate a black-box teacher without data: DFME.py, IDEAL.py and DFHL.py."""
