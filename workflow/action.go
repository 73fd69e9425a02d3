package workflow

// Action is an action's metadata: action.yml.
type Action struct {
	File    string
	Name    string
	Inputs  []Input
	Outputs []EnvVar // name and value; the value is an expression in composite actions and "" elsewhere
	Runs    Runs
}

// Runs says how an action runs.
type Runs struct {
	Using          string // "node20", "node24", "composite" or "docker", in lower case
	Main           string
	Pre            string
	PreIf          string // an expression without ${{ }}; "": always()
	Post           string
	PostIf         string // an expression without ${{ }}; "": always()
	Image          string // Dockerfile, a path to one, or docker://image
	Entrypoint     string
	PreEntrypoint  string
	PostEntrypoint string
	Args           []string // may hold ${{ }}, of the inputs context
	Env            []EnvVar // may hold ${{ }}
	Steps          []Step   // of a composite action
}

// ParseAction reads an action's metadata. The Action is nil only if nothing of it is usable.
func ParseAction(file string, src []byte) (*Action, []Problem) {
	return nil, nil
}
