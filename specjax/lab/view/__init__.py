"""What a person looks at: labelled text, figures and pages, drawn from a trace alone."""
