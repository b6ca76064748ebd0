"""The report of a run as one HTML file and its Markdown twin, made from what lies in the run folder alone."""
