package llm

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
)

// Foreign is the configuration of another CI system, to be put as a workflow.
type Foreign struct {
	Kind   string // "GitLab CI", "CircleCI", "Jenkins"
	Source string // hostile
	// Accept is the compiler's and the policy's word on a proposal: an error tells the model what to mend, once.
	Accept func(workflow string) error
}

// ProposePrompt is the version of the prompt.
const ProposePrompt = "propose/1"

const mostProposal = 32 << 10 // bytes

const proposeSystem = `You translate the configuration of another CI system to one GitHub Actions workflow file. Keep every command as it is.
Use runs-on: ubuntu-latest, on: push, and of actions none but actions/checkout. Use no secrets, no permissions, no environments, no services.
What cannot be translated becomes a note.`

// Proposal is a workflow that a model proposes. It was accepted by Foreign.Accept, and has never run.
type Proposal struct {
	Workflow string
	Notes    []string // fit to be shown
	Model    Model
}

// Propose has a model translate. The proposal has passed Accept; an error of Accept that the model could not mend is
// the Fault's cause. Nothing is run here.
func (s *Service) Propose(ctx context.Context, f Foreign) (Proposal, error) {
	if len(f.Source) > mostSource {
		return Proposal{}, faultf(TooLarge, "the file has %d bytes; at most %d can be translated", len(f.Source), mostSource)
	}
	data := "System: " + f.Kind + "\n\n" + f.Source
	p, err := s.propose(ctx, data, f.Accept)
	var refused *refusedProposal
	if errors.As(err, &refused) {
		data += "\n\nAn earlier translation was refused:\n" + cut(refused.workflow, 8<<10) + "\n\nbecause: " + cut(refused.err.Error(), 1000)
		p, err = s.propose(ctx, data, f.Accept)
	}
	return p, err
}

// refusedProposal is a translation that Accept did not take.
type refusedProposal struct {
	workflow string
	err      error
}

// Error says why.
func (r *refusedProposal) Error() string {
	return "the proposed workflow was refused: " + r.err.Error()
}

// Unwrap returns Accept's error.
func (r *refusedProposal) Unwrap() error { return r.err }

func (s *Service) propose(ctx context.Context, data string, accept func(string) error) (Proposal, error) {
	schema, err := json.Marshal(object([]string{"workflow", "notes"}, map[string]any{
		"workflow": map[string]any{"type": "string"},
		"notes":    map[string]any{"type": "array", "maxItems": 10, "items": map[string]any{"type": "string"}},
	}))
	if err != nil {
		panic(err) // strings: cannot be
	}
	var out struct {
		Workflow string   `json:"workflow"`
		Notes    []string `json:"notes"`
	}
	r, err := s.ask(ctx, task{kind: "propose", version: ProposePrompt, system: proposeSystem, data: data, schema: schema, output: 3000, trusted: true,
		check: func(text string) error {
			out.Workflow, out.Notes = "", nil
			if err := strict(text, &out); err != nil {
				return err
			}
			if out.Workflow != Strip(out.Workflow) || len(out.Workflow) > mostProposal || strings.TrimSpace(out.Workflow) == "" {
				return errors.New("the workflow is empty, too large, or holds characters that are not seen")
			}
			if err := accept(out.Workflow); err != nil {
				return &refusedProposal{out.Workflow, err}
			}
			return nil
		}})
	if err != nil {
		return Proposal{}, err
	}
	p := Proposal{Workflow: out.Workflow, Model: r.model}
	for _, n := range out.Notes[:min(len(out.Notes), 10)] {
		p.Notes = append(p.Notes, s.c.Redact.Say(n, 300))
	}
	return p, nil
}
