"The paper's protocol, its published numbers, long tables, benches; nobody who uses the tool needs it"
