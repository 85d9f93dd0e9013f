"""Labels of any number of image files: the program `scnet tag`, its engines and its output."""
