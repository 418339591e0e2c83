"""The reading of one slide: fields, capillaries, grade, report; and the reading that a person corrected."""
