"""What a person looks at: scored responses in the terminal, on a page, in a notebook."""
