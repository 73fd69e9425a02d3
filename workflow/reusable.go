package workflow

import (
	"fmt"
	"strings"
)

// workflowRef checks the uses of a job.
func (r *reader) workflowRef(n *node) {
	if n.bad {
		return
	}
	if err := checkWorkflowRef(n.text); err != nil {
		r.errorf(n, "uses", "invalid workflow reference '%s': %v", n.text, err)
	}
}

// checkWorkflowRef says what is wrong with the uses of a job: it is ./.github/workflows/x.yml or
// owner/repo/.github/workflows/x.yml@ref.
func checkWorkflowRef(uses string) error {
	const dir = ".github/workflows/"
	path := uses
	if isLocal(uses) {
		path = uses[2:]
		if strings.Contains(path, "@") {
			return fmt.Errorf("a workflow of the same repository cannot have a version")
		}
	} else {
		full, ref, ok := strings.Cut(uses, "@")
		if !ok || ref == "" {
			return fmt.Errorf("no version specified; expected owner/repo/.github/workflows/file.yml@ref")
		}
		parts := strings.SplitN(full, "/", 3)
		if len(parts) < 3 || parts[0] == "" || parts[1] == "" {
			return fmt.Errorf("expected owner/repo/.github/workflows/file.yml@ref")
		}
		path = parts[2]
	}
	file, ok := strings.CutPrefix(path, dir)
	if !ok || file == "" || strings.Contains(file, "/") {
		return fmt.Errorf("workflows must be defined at the top level of the .github/workflows/ directory")
	}
	if !strings.HasSuffix(file, ".yml") && !strings.HasSuffix(file, ".yaml") {
		return fmt.Errorf("the workflow file should have either a '.yml' or '.yaml' file extension")
	}
	return nil
}
