"""Tell the user: progress, summary, advice, links to the documentation."""
