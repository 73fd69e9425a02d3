package workflow

// Parse reads a workflow file. All problems of the file are returned, sorted by place; the Workflow is nil only
// if nothing of it is usable. file is what problems name; nothing is read from disk.
func Parse(file string, src []byte) (*Workflow, []Problem) {
	return nil, nil
}
