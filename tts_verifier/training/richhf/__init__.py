"""RichHF-18K: its files, its fields, and a miniature of it made from the world of shapes."""
