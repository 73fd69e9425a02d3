package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/llm"
	"github.com/terraphim/tgr/workflow"
)

// missing finds the action in what the runner says of one that it could not fetch.
var missing = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?:Unable to resolve action|uses:) '([A-Za-z0-9_./-]{1,300}@[A-Za-z0-9_./-]{1,200})'`)
})

// missingAction is the action for want of which a job has failed; "" where it failed otherwise. What a step says of itself is not
// looked at.
func missingAction(r dispatch.JobResult) string {
	if !r.Conclusion.Failed() || r.Blame != tgr.BlameWorkflow && r.Blame != tgr.BlameOurs {
		return ""
	}
	if m := missing().FindStringSubmatch(r.Reason); m != nil {
		return m[1]
	}
	return ""
}

// instead says what could stand in the place of an action that a job could not have; nil where uses is "".
func (a *advisor) instead(run tgr.Run, job tgr.Job, uses string) *tgr.Replacement {
	if uses == "" {
		return nil
	}
	out := &tgr.Replacement{Uses: a.llm.Redactor().Redact(uses)}
	with := inputsOf(run.Plan, job.Key, uses)
	for name, value := range with { // before they are cut
		with[name] = a.llm.Redactor().Redact(value)
	}
	r, known := llm.Native(uses, with)
	for _, n := range r.Notes {
		out.Notes = append(out.Notes, a.llm.Redactor().Say(n, 300))
	}
	out.Steps = r.Steps
	if !known {
		out.Notes = append(out.Notes, "A language model may propose some: tgr import --action "+out.Uses)
	}
	return out
}

// inputsOf are the inputs that a job's step gives an action, as they are written. An action that another action uses has none here.
func inputsOf(plan []byte, key, uses string) map[string]string {
	job := jobInPlan(plan, key)
	if job == nil {
		return nil
	}
	for _, s := range flatSteps(job.Steps) {
		if strings.EqualFold(s.Uses, uses) {
			with := map[string]string{}
			for _, v := range s.With {
				with[v.Name] = v.Value
			}
			return with
		}
	}
	return nil
}

// importAction proposes steps in the place of an action: those that are built in, else a model's, which have to run first.
func importAction(cmd *cobra.Command, c *config, uses string, inputs []string, dir, network string, dryRun bool) error {
	with := map[string]string{}
	for _, in := range inputs {
		name, value, ok := strings.Cut(in, "=")
		if !ok || name == "" {
			return usageError{fmt.Errorf("--with %q is not input=value", in)}
		}
		with[name] = value
	}
	out, notes := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if r, ok := llm.Native(uses, with); ok {
		for _, n := range r.Notes {
			fmt.Fprintln(notes, "note:", n)
		}
		if r.Steps == "" {
			return usageError{fmt.Errorf("nothing can stand in the place of %s", uses)}
		}
		if err := acceptProposal(workflowOf(r.Steps)); err != nil {
			return usageError{err} // an input that is a secret, say
		}
		fmt.Fprint(out, r.Steps)
		fmt.Fprintln(notes, "built in, and accepted by the compiler; read it before you use it")
		if !dryRun {
			return nil
		}
		return tryProposal(cmd.Context(), workflowOf(r.Steps), dir, network, notes)
	}
	steps, p, err := proposeAction(cmd.Context(), c, uses, with)
	if err != nil {
		return err
	}
	fmt.Fprintf(notes, "proposed by %s, accepted by the compiler; now it runs, without secrets\n", p.Model)
	if err := tryProposal(cmd.Context(), workflowOf(steps), dir, network, notes); err != nil {
		fmt.Fprintf(notes, "what was proposed, and is not to be used as it is:\n%s", steps)
		return err
	}
	fmt.Fprint(out, steps)
	fmt.Fprintln(notes, "it has run; read it before you use it")
	for _, n := range p.Notes {
		fmt.Fprintln(notes, "note:", n)
	}
	return nil
}

// proposeAction has the model write a step. What it wrote is a script and nothing else: the step about it is ours.
func proposeAction(ctx context.Context, c *config, uses string, with map[string]string) (steps string, p llm.Proposal, err error) {
	service, err := newLLM(c, slog.New(slog.DiscardHandler), 10*time.Minute, nil) // a person waits for it
	if err != nil {
		return "", p, err
	}
	env := map[string]string{}
	for name, value := range with {
		env[llm.InputVariable(name)] = llm.Strip(value)
	}
	stepsOf := func(script string) string { return llm.StepYAML("In place of "+uses, env, script) }
	p, err = service.ProposeStep(ctx, llm.Action{Uses: uses, With: with, Accept: func(script string) error {
		return acceptStep(stepsOf(script), script)
	}})
	return stepsOf(p.Workflow), p, proposalError(err)
}

// proposalError says by its exit status whether there was no model, or none that proposed anything acceptable.
func proposalError(err error) error {
	var f *llm.Fault
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f) && f.Reason != llm.Invalid && f.Reason != llm.TooLarge:
		return exitError{exitOurs, err}
	}
	return usageError{err}
}

// workflowOf is a workflow that runs some steps after a checkout.
func workflowOf(steps string) string {
	return "name: Proposed\non: push\njobs:\n  proposed:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@v4\n      " +
		strings.ReplaceAll(strings.TrimRight(steps, "\n"), "\n", "\n      ") + "\n"
}

// acceptStep holds that the compiler reads one step which runs the script, and nothing besides.
func acceptStep(steps, script string) error {
	text := workflowOf(steps)
	if err := acceptProposal(text); err != nil {
		return err
	}
	if strings.Contains(script, "${{") {
		return errors.New("the script holds an expression; inputs are in its environment")
	}
	w, _ := workflow.Parse(proposedFile, []byte(text))
	plan, _ := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: "push", Ref: "refs/heads/main"}})
	if len(plan.Jobs) != 1 || len(plan.Jobs[0].Steps) != 2 {
		return errors.New("it is not one step")
	}
	if got := plan.Jobs[0].Steps[1].Run; strings.TrimSpace(got) != strings.TrimSpace(script) {
		return errors.New("the script is not what the compiler reads: it may not begin or end in the middle of YAML")
	}
	return nil
}
