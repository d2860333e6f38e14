"""What a real model writes before and after it forgets microbiology."""
