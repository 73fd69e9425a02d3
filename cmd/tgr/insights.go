package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/learn"
)

func newInsightsCmd() *cobra.Command {
	v := &runsVerbs{}
	var forks bool
	var command string
	cmd := &cobra.Command{
		Use:   "insights OWNER/NAME",
		Short: "Show what was learnt from the runs of a repository",
		Long: `Shows what a server has learnt from the runs of a repository: what to do about it first, each with the runs that speak
for it, then what is flaky, which failures are the same, how often and how long things succeed. Below eight samples
it says that there is not enough data. It advises, and changes nothing.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return runsUsage("%s takes one argument, owner/name", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := v.client()
			if err != nil {
				return runsFailure(err)
			}
			in, err := c.Insights(cmd.Context(), args[0], forks, command)
			switch {
			case err != nil:
				return runsFailure(err)
			case v.json:
				return v.print(cmd, in)
			}
			return v.insights(cmd.OutOrStdout(), in)
		},
	}
	v.serverVerbs(cmd)
	cmd.Flags().BoolVar(&v.json, "json", false, "print JSON")
	cmd.Flags().BoolVar(&forks, "forks", false, "what the pull requests of its forks taught, which is kept apart")
	cmd.Flags().StringVar(&command, "command", "", `also tell of this command, such as "npm ci"`)
	return cmd
}

func (v *runsVerbs) insights(out io.Writer, in tgr.Insights) error {
	fmt.Fprintf(out, "%s: learnt from %d jobs, until %s; %d more failed by faults of ours\n", v.text(in.Repo, 100), in.Jobs, in.Until.Local().Format(time.DateTime), in.Ours)
	v.section(out, "Suggestions", len(in.Suggestions), func(i int) string {
		s := in.Suggestions[i]
		line := fmt.Sprintf("%s%s: %s", s.Kind, v.where(s.Workflow, s.Job, s.Step), v.text(s.Text, 400))
		if s.Saves > 0 {
			line += fmt.Sprintf(" Saves %s a run.", s.Saves.Round(100*time.Millisecond))
		}
		return line + v.evidence(s.Evidence)
	})
	v.section(out, "Flaky", len(in.Flaky), func(i int) string {
		f := in.Flaky[i]
		how := "probably"
		if f.Definite {
			how = "certainly: it failed and passed on the same code"
		}
		return fmt.Sprintf("%.0f %% fail%s, %s%s", 100*f.Rate, v.where(f.Workflow, f.Job, f.Step), how, v.evidence(f.Evidence))
	})
	v.section(out, "Failures", len(in.Failures), func(i int) string {
		f := in.Failures[i]
		line := fmt.Sprintf("%d times: %s", f.N, v.text(f.Sample, 160))
		for _, l := range f.Also {
			line += fmt.Sprintf("; with %s (at least %.2f)", v.text(l.To, 100), l.Low)
		}
		for _, fix := range f.Fixes {
			line += "; went away with " + v.text(fix.To, 100)
		}
		return line + v.evidence(f.Evidence)
	})
	v.section(out, "Lessons", len(in.Lessons), func(i int) string {
		l := in.Lessons[i]
		return fmt.Sprintf("%s has failed %d times like this (confidence %.2f): %s%s", v.text(l.Command, 80), l.N, l.Confidence, v.text(l.Failure, 160), v.evidence(l.Evidence))
	})
	v.section(out, "Risks", len(in.Risks), func(i int) string {
		r := in.Risks[i]
		return fmt.Sprintf("after a change of %s at least %.0f %% fail%s, %.0f %% in all%s", v.text(r.File, 100), 100*r.Low, v.where(r.Workflow, r.Job, ""), 100*r.Usual, v.evidence(r.Evidence))
	})
	if c := in.Command; c != nil {
		v.aboutCommand(out, *c)
	}
	if err := v.timings(out, in.Timings); err != nil {
		return err
	}
	for _, n := range in.NotMeasured {
		fmt.Fprintln(out, "not measured:", v.text(n, 300))
	}
	return nil
}

func (v *runsVerbs) section(out io.Writer, title string, n int, line func(int) string) {
	if n == 0 {
		return
	}
	fmt.Fprintf(out, "\n%s\n", title)
	for i := range n {
		fmt.Fprintln(out, "-", line(i))
	}
}

func (v *runsVerbs) aboutCommand(out io.Writer, c tgr.Command) {
	fmt.Fprintf(out, "\n%s: ", v.text(c.Name, 80))
	if !c.Enough {
		fmt.Fprintf(out, "not enough data (%d of %d)\n", c.N, learn.Enough)
	} else {
		fmt.Fprintf(out, "succeeds with a probability of %.2f (%d runs)\n", c.Success, c.N)
	}
	for _, r := range c.Related {
		fmt.Fprintf(out, "- then %s: at least %.2f of %d succeeded", v.text(r.To, 80), r.Low, r.N)
		if r.Success > 0 {
			fmt.Fprintf(out, ", the next with a probability of %.2f", r.Success)
		}
		fmt.Fprintln(out, v.evidence(r.Evidence))
	}
	for _, f := range c.Failures {
		fmt.Fprintf(out, "- fails with %s (%d)%s\n", v.text(f.To, 160), f.N, v.evidence(f.Evidence))
	}
}

func (v *runsVerbs) timings(out io.Writer, list []tgr.Timing) error {
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WORKFLOW / JOB / STEP\tN\tSUCCESS\tMEDIAN\tP90\tTIME-OUT\tCPU\tMEMORY")
	for _, t := range list {
		name := strings.TrimPrefix(v.where(t.Workflow, t.Job, t.Step), " of ")
		if !t.Enough {
			fmt.Fprintf(w, "%s\t%d\tnot enough data\t\t\t\n", name, t.N)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%.2f (%.2f to %.2f)\t%s\t%s\t%s\t%s\t%s\n", name, t.N, t.Success, t.Low, t.High, v.lasts(t.Median), v.lasts(t.P90), v.lasts(t.Timeout), v.lasts(t.CPU), v.memory(t))
	}
	return w.Flush()
}

// memory is the peak that was seen, the size that would do, and the runs that say so.
func (v *runsVerbs) memory(t tgr.Timing) string {
	if t.MemoryMiB == 0 {
		return "-"
	}
	return fmt.Sprintf("%d MiB, wants %d%s", t.PeakMiB, t.MemoryMiB, v.evidence(t.MemoryOf))
}

func (v *runsVerbs) lasts(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(100 * time.Millisecond).String()
}

func (v *runsVerbs) where(workflow, job, step string) string {
	var parts []string
	for _, p := range []string{workflow, job, step} {
		if p != "" {
			parts = append(parts, v.text(strings.TrimPrefix(p, ".github/workflows/"), 60))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " of " + strings.Join(parts, " / ")
}

func (v *runsVerbs) evidence(runs []tgr.RunID) string {
	if len(runs) == 0 {
		return ""
	}
	var s []string
	for _, r := range runs {
		s = append(s, r.String())
	}
	return " [runs " + strings.Join(s, ", ") + "]"
}

func newLearnCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "learn", Short: "Keep what was learnt from runs", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var asJSON bool
	rebuild := &cobra.Command{
		Use: "rebuild", Short: "Forget what was learnt, and learn it again from the runs that are stored",
		Long: `Learns everything again from the log of finished jobs in the data folder, which no server may be using. The state is the
same afterwards, byte for byte, unless logs of jobs were removed, or another version of tgr wrote it: then it says so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			h, done, err := openHistory(cmd.Context(), c, log)
			if err != nil {
				return ours(err)
			}
			defer done()
			l, err := learn.Open(cmd.Context(), learn.Config{Path: learnPath(c), Source: h, Log: log})
			if err != nil {
				return ours(err)
			}
			defer l.Close()
			r, err := l.Rebuild(cmd.Context())
			switch {
			case err != nil:
				return ours(err)
			case asJSON:
				return printJSON(cmd.OutOrStdout(), r)
			}
			verdict := "the state is the same as before, byte for byte"
			if !r.Same() {
				verdict = "the state is not what it was"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "learnt from %d jobs, %d of them without their log: %s\n%s\n", r.Records, r.Lost, verdict, r.After)
			return err
		},
	}
	configFlags(rebuild, "data-dir")
	rebuild.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(rebuild)
	return cmd
}

func newEvalLearnCmd() *cobra.Command {
	var asJSON bool
	var seed uint64
	var commits int
	cmd := &cobra.Command{Use: "learn", Short: "Measure what learns from runs, on histories whose truth is known",
		Long: `Makes histories of a repository up, with known rates of flakiness, breakages, slowdowns, causes of failures and hostile
forks, and measures on their later half what is predicted from what came before, beside a baseline that needs no
learner. The histories are ours, and so is the learner: yours will differ.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			began := time.Now()
			trace := learn.NewTrace(learn.TraceConfig{Seed: seed, Commits: commits, Jobs: 10, Lines: 20, Forked: 0.1})
			made := time.Now()
			m := learn.Measure(trace)
			took := time.Since(made)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), m)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "made up in %s, measured in %s\n", made.Sub(began).Round(time.Millisecond), took.Round(time.Millisecond))
			return printMeasures(cmd.OutOrStdout(), m)
		}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().Uint64Var(&seed, "seed", 1, "which history")
	cmd.Flags().IntVar(&commits, "commits", 300, "how long it is")
	return cmd
}

func printMeasures(out io.Writer, m learn.Measures) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tlearner\tbaseline\tbetter is\tbaseline is")
	for _, row := range []struct {
		what   string
		c      learn.Compare
		better string
		base   string
	}{
		{"outcome, Brier score", m.Outcome, "lower", "as last time"},
		{"median duration, pinball loss (ms)", m.Median, "lower", "as last time"},
		{"90 % quantile, pinball loss (ms)", m.P90, "lower", "as last time"},
		{"false kills of 1,000", m.Kills, "lower", "twice the mean"},
		{"flaky steps, F1", m.Flaky, "higher", "more than 5 % fail"},
		{"slower steps, F1", m.Slower, "higher", "1.2 times the mean"},
		{"failures grouped right", m.Grouping, "higher", "equal first lines, as the original did"},
	} {
		fmt.Fprintf(w, "%s\t%.3f\t%.3f\t%s\t%s\n", row.what, row.c.Learner, row.c.Baseline, row.better, row.base)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "flaky precision %.3f, recall %.3f; forks changed what is believed: %t; %d jobs\n", m.Precision, m.Recall, m.Poisoned, m.Jobs)
	return err
}
