package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/web"
)

func newExplainCmd() *cobra.Command {
	v := &runsVerbs{}
	cmd := &cobra.Command{
		Use:   "explain RUN [QUESTION…]",
		Short: "Say why the jobs of a run failed, or answer a question about it",
		Long: `Shows the lines of the logs that tell why the jobs of a run failed, found by rules, and what a language model
makes of them, if the server has one: each of its claims with the lines that it rests on, quoted by the server.

With a question, asks the model; without a model there is no answer (exit status 3).`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return runsUsage("%s takes the run's id (see `tgr runs list`), and a question if you have one", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || id <= 0 {
				return runsUsage("the run is %q, and should be the number in the first column of `tgr runs list`", args[0])
			}
			c, err := v.client()
			if err != nil {
				return runsFailure(err)
			}
			if question := strings.Join(args[1:], " "); question != "" {
				return runsFailure(v.ask(cmd, c, tgr.RunID(id), question))
			}
			return runsFailure(v.explain(cmd.Context(), cmd, c, tgr.RunID(id)))
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return runsError{2, err} })
	cmd.Flags().StringVar(&v.server, "server", "", "the server's URL (default $TGR_SERVER, else http://127.0.0.1:3000)")
	cmd.Flags().StringVar(&v.token, "token", "", "the server's token (default $TGR_TOKEN)")
	cmd.Flags().BoolVar(&v.json, "json", false, "print JSON")
	return cmd
}

func (v *runsVerbs) ask(cmd *cobra.Command, c *web.Client, id tgr.RunID, question string) error {
	a, err := c.Ask(cmd.Context(), id, question)
	switch {
	case err != nil:
		return err
	case v.json:
		return v.print(cmd, a)
	}
	v.claim(cmd.OutOrStdout(), "The model", a)
	return nil
}

func (v *runsVerbs) explain(ctx context.Context, cmd *cobra.Command, c *web.Client, id tgr.RunID) error {
	d, err := c.Run(ctx, id, 0)
	if err != nil {
		return err
	}
	notes := tgr.Notes{}
	if d.Notes != nil {
		notes = *d.Notes
	}
	if v.json {
		return v.print(cmd, notes)
	}
	w := cmd.OutOrStdout()
	if len(notes.Explanations) == 0 {
		fmt.Fprintf(w, "no job of run %d has an explanation: none failed by its own doing, or it is still being read\n", id)
		return nil
	}
	for i, e := range notes.Explanations {
		if i > 0 {
			fmt.Fprintln(w)
		}
		v.explanation(w, e)
	}
	return nil
}

// explanation prints the lines that are left of a log, the likely cause marked, then what the model claims.
func (v *runsVerbs) explanation(w io.Writer, e tgr.Explanation) {
	fmt.Fprintf(w, "%s (job %d): %d of %d lines\n", v.text(e.Name, 200), e.Job, len(e.Lines), e.Total)
	last := 0
	for _, l := range e.Lines {
		if last > 0 && l.N > last+1 {
			fmt.Fprintln(w, "     …")
		}
		mark := " "
		if l.N == e.Cause {
			mark = ">"
		}
		fmt.Fprintf(w, "%s%5d %s\n", mark, l.N, v.text(unmarked(l.Text), 400))
		last = l.N
	}
	for _, c := range e.Claims {
		v.claim(w, v.text(e.By, 100), c)
	}
	if e.Instead != nil {
		v.instead(w, *e.Instead)
	}
	if len(e.Claims) == 0 {
		fmt.Fprintf(w, "no model explains it: %s\n", v.text(e.Reason, 60))
	}
}

// instead prints what could stand in the place of an action that was not to be had.
func (v *runsVerbs) instead(w io.Writer, r tgr.Replacement) {
	fmt.Fprintf(w, "%s was not to be had.", v.text(r.Uses, 200))
	if r.Steps != "" {
		fmt.Fprintln(w, " In its place could stand:")
		for line := range strings.Lines(r.Steps) {
			fmt.Fprintf(w, "  %s\n", v.text(strings.TrimSuffix(line, "\n"), 400))
		}
	} else {
		fmt.Fprintln(w, " Nothing is built in that could stand in its place.")
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", v.text(n, 300))
	}
}

func (v *runsVerbs) claim(w io.Writer, by string, c tgr.Claim) {
	fmt.Fprintf(w, "%s thinks: %s", by, v.text(c.Text, 600))
	if c.Fix != "" {
		fmt.Fprintf(w, " %s", v.text(c.Fix, 400))
	}
	fmt.Fprintln(w)
	for _, l := range c.Lines {
		fmt.Fprintf(w, "  citing line %d: %s\n", l.N, v.text(unmarked(l.Text), 300))
	}
}

// readBy is one line about who has read a run's workflow.
func (v *runsVerbs) readBy(p tgr.Provenance) string {
	s := "workflow read by: " + v.text(p.By, 40)
	if p.Reason != "" {
		s += " (" + v.text(p.Reason, 40) + ")"
	}
	if p.Model != "" {
		s += ", " + v.text(p.Model, 100)
	}
	if p.Took > 0 {
		s += ", " + p.Took.Round(100*time.Millisecond).String()
	}
	if p.Cached {
		s += ", from the cache"
	}
	return s
}
