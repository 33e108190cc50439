"""Images where people keep them: folders, archives, arrays and tables, behind one interface."""
