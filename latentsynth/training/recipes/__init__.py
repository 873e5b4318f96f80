"""One recipe per thing trained: what it learns from, its loss, and what it leaves behind."""
