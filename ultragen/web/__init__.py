"""What the page is drawn with: pictures and messages as HTML, the comparison component."""
