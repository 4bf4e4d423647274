"""PolicyService: its methods by what they are about, behind access control and audit."""
