"""`jbatch bench report`: results as one page with pictures."""
