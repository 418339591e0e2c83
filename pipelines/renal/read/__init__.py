"""One slide read: fields, capillaries, grade, report; and the reading that a person corrected."""
