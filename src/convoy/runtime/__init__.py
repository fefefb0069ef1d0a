"""Running a plan: crews of ranks, what each of them does, and what it leaves behind."""
