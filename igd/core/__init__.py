"""Words and judgement: no clock, socket, file, log or event loop."""
