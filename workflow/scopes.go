package workflow

import "github.com/terraphim/tgr/expr"

// allow is the set of contexts and functions that a key's expressions may use, beyond the functions that are
// allowed wherever there are expressions. A key below another one may use what both allow together.
type allow uint32

const (
	ctxGitHub allow = 1 << iota
	ctxInputs
	ctxVars
	ctxNeeds
	ctxStrategy
	ctxMatrix
	ctxSecrets
	ctxSteps
	ctxJob
	ctxRunner
	ctxEnv
	ctxJobs
	fnHashFiles
	fnJobStatus  // success and failure with the ids of jobs, always, cancelled
	fnStepStatus // success, failure, always, cancelled without arguments
)

// The sets that many keys share.
const (
	allowRun       = ctxGitHub | ctxInputs | ctxVars                                                                        // of the whole run
	allowNeeds     = allowRun | ctxNeeds                                                                                    // before the matrix is known
	allowStrategy  = allowNeeds | ctxStrategy | ctxMatrix                                                                   // once the matrix is known
	allowRunner    = allowStrategy | ctxSteps | ctxJob | ctxRunner | ctxEnv                                                 // while the job runs, no secrets
	allowSteps     = allowRunner | ctxSecrets | fnHashFiles                                                                 // while its steps run
	allowComposite = ctxGitHub | ctxInputs | ctxStrategy | ctxMatrix | ctxSteps | ctxJob | ctxRunner | ctxEnv | fnHashFiles // in an action's steps
)

// contextName is the name of each context's bit.
func contextName(bit allow) string {
	switch bit {
	case ctxGitHub:
		return "github"
	case ctxInputs:
		return "inputs"
	case ctxVars:
		return "vars"
	case ctxNeeds:
		return "needs"
	case ctxStrategy:
		return "strategy"
	case ctxMatrix:
		return "matrix"
	case ctxSecrets:
		return "secrets"
	case ctxSteps:
		return "steps"
	case ctxJob:
		return "job"
	case ctxRunner:
		return "runner"
	case ctxEnv:
		return "env"
	case ctxJobs:
		return "jobs"
	}
	return ""
}

// scope is the set as expr checks it.
func (a allow) scope() *expr.Scope {
	s := &expr.Scope{}
	for bit := ctxGitHub; bit <= ctxJobs; bit <<= 1 {
		if a&bit != 0 {
			s.Contexts = append(s.Contexts, contextName(bit))
		}
	}
	if a&fnHashFiles != 0 {
		s.Functions = append(s.Functions, expr.FunctionSig{Name: "hashFiles", Min: 1, Max: 255})
	}
	maxArgs := 0
	if a&fnJobStatus != 0 {
		maxArgs = -1
	}
	if a&(fnJobStatus|fnStepStatus) != 0 {
		s.Functions = append(s.Functions,
			expr.FunctionSig{Name: "always"}, expr.FunctionSig{Name: "cancelled"},
			expr.FunctionSig{Name: "success", Max: maxArgs}, expr.FunctionSig{Name: "failure", Max: maxArgs})
	}
	return s
}
