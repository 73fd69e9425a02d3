package llm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
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
	return s.propose(ctx, proposing{kind: "propose", version: ProposePrompt, system: proposeSystem, field: "workflow", accept: f.Accept},
		"System: "+f.Kind+"\n\n"+f.Source)
}

// Action is one that cannot be fetched, and that nobody has a replacement for.
type Action struct {
	Uses string            // owner/name@ref
	With map[string]string // the inputs that the step gives it
	// Accept is the compiler's and the policy's word on a script that does what the action does: an error tells the model
	// what to mend, once.
	Accept func(script string) error
}

// ActionPrompt is the version of the prompt.
const ActionPrompt = "action/1"

const actionSystem = `You write a bash script that does, in one step of a CI job on Debian, what a GitHub action does. The action itself cannot be fetched.
Its inputs are in environment variables: the input node-version is $INPUT_NODE_VERSION. GITHUB_ENV, GITHUB_PATH, GITHUB_OUTPUT and RUNNER_TEMP work as ever.
Use no secrets, no tokens and no other action. What the script does not do becomes a note. If you do not know the action, write the script: exit 1`

// InputVariable is the environment variable that a script for an action finds an input in.
func InputVariable(input string) string {
	return "INPUT_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, firstOf(input, 60))
}

// ProposeStep has a model write a script to stand in an action's place: the Proposal's Workflow is that script alone. It has
// passed Accept, and has never run.
func (s *Service) ProposeStep(ctx context.Context, a Action) (Proposal, error) {
	if !actionName().MatchString(a.Uses) {
		return Proposal{}, faultf(Invalid, "%q is not owner/name@ref", Strip(firstOf(a.Uses, 100)))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Action: %s\n", a.Uses)
	for _, name := range slices.Sorted(maps.Keys(a.With)) {
		fmt.Fprintf(&b, "Input %s is in $%s: %s\n", firstOf(name, 60), InputVariable(name), s.shortened(a.With[name], 200))
	}
	return s.propose(ctx, proposing{kind: "action", version: ActionPrompt, system: actionSystem, field: "script", accept: a.Accept}, b.String())
}

// refusedProposal is a translation that accept did not take.
type refusedProposal struct {
	text string
	err  error
}

// Error says why.
func (r *refusedProposal) Error() string { return "the proposal was refused: " + r.err.Error() }

// Unwrap returns accept's error.
func (r *refusedProposal) Unwrap() error { return r.err }

// proposing is a kind of proposals.
type proposing struct {
	kind, version, system string
	field                 string // of the answer that holds the text
	accept                func(string) error
}

// propose asks, and once more with the reason where the first proposal is refused.
func (s *Service) propose(ctx context.Context, k proposing, data string) (Proposal, error) {
	p, err := s.proposeOnce(ctx, k, data)
	var refused *refusedProposal
	if errors.As(err, &refused) {
		data += "\n\nAn earlier answer was refused:\n" + s.shortened(refused.text, 8<<10) + "\n\nbecause: " + s.shortened(refused.err.Error(), 1000)
		p, err = s.proposeOnce(ctx, k, data)
	}
	return p, err
}

func (s *Service) proposeOnce(ctx context.Context, k proposing, data string) (Proposal, error) {
	schema, err := json.Marshal(object([]string{k.field, "notes"}, map[string]any{
		k.field: map[string]any{"type": "string"},
		"notes": map[string]any{"type": "array", "maxItems": 10, "items": map[string]any{"type": "string"}},
	}))
	if err != nil {
		panic(err) // strings: cannot be
	}
	var text string
	var notes []string
	r, err := s.ask(ctx, task{kind: k.kind, version: k.version, system: k.system, data: data, schema: schema, output: 3000, trusted: true,
		check: func(answer string) error {
			var out map[string]json.RawMessage
			if err := strict(answer, &out); err != nil {
				return err
			}
			text, notes = "", nil
			if err := errors.Join(json.Unmarshal(out[k.field], &text), json.Unmarshal(out["notes"], &notes)); err != nil || len(out) != 2 {
				return fmt.Errorf("the answer is not %s and notes", k.field)
			}
			if text != Strip(text) || len(text) > mostProposal || strings.TrimSpace(text) == "" {
				return fmt.Errorf("the %s is empty, too large, or holds characters that are not seen", k.field)
			}
			if err := k.accept(text); err != nil {
				return &refusedProposal{text, err}
			}
			return nil
		}})
	if err != nil {
		return Proposal{}, err
	}
	p := Proposal{Workflow: text, Model: r.model}
	for _, n := range notes[:min(len(notes), 10)] {
		p.Notes = append(p.Notes, s.c.Redact.Say(n, 300))
	}
	return p, nil
}
