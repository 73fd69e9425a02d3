from widgets import area

assert area(6, 7) == 42
print("1 test passed")
