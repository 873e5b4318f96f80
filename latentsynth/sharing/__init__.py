"""Before a set leaves the house: drop copies, pack it with a data card, fill up rare cases."""
