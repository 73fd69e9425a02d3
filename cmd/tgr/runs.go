package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/web"
)

// runsError is an error of `tgr runs` with its exit status: 1 for a job that failed, 2 for a request that makes
// no sense, 3 for a server that cannot be reached or is at fault.
type runsError struct {
	code int
	err  error
}

// Error is the message; what the server gives away of the cause is in it.
func (e runsError) Error() string {
	var te *tgr.Error
	if errors.As(e.err, &te) && te.Message != "" {
		if te.Err != nil {
			return te.Message + ": " + te.Err.Error()
		}
		return te.Message
	}
	return e.err.Error()
}

// Unwrap returns the cause.
func (e runsError) Unwrap() error { return e.err }

// ExitCode is the exit status.
func (e runsError) ExitCode() int { return e.code }

// runsFailure gives an error its exit status.
func runsFailure(err error) error {
	var have runsError
	if err == nil || errors.As(err, &have) {
		return err
	}
	switch tgr.CodeOf(err) {
	case tgr.Invalid, tgr.Unauthorized, tgr.NotFound, tgr.Conflict, tgr.Workflow:
		return runsError{2, err}
	}
	return runsError{3, err}
}

func runsUsage(format string, args ...any) error { return runsError{2, fmt.Errorf(format, args...)} }

// runsVerbs is what the verbs of `tgr runs` share.
type runsVerbs struct {
	server, token string
	json          bool
}

func newRunsCmd() *cobra.Command {
	v := &runsVerbs{}
	cmd := &cobra.Command{
		Use:   "runs",
		Short: "List, show, follow, start, cancel and repeat the runs of a server",
		Long: `Talks to a server over its HTTP API.

Exit status: 0; 1 if the job failed (logs -f, show --exit-status); 2 if the request makes no sense;
3 if the server cannot be reached or is at fault.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	v.serverVerbs(cmd)
	cmd.AddCommand(v.listCmd(), v.showCmd(), v.logsCmd(), v.cancelCmd(), v.rerunCmd(), v.startCmd(), v.schedulesCmd())
	return cmd
}

func (v *runsVerbs) client() (*web.Client, error) {
	return web.NewClient(cmp.Or(v.server, os.Getenv("TGR_SERVER"), "http://127.0.0.1:3000"), cmp.Or(v.token, os.Getenv("TGR_TOKEN")))
}

// verb makes a command about one run. Errors get their exit status here.
func (v *runsVerbs) verb(use, short string, do func(context.Context, *web.Client, tgr.RunID, *cobra.Command) error) *cobra.Command {
	return &cobra.Command{Use: use + " RUN", Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return runsUsage("%s takes one argument, the run's id (see `tgr runs list`), not %d", cmd.CommandPath(), len(args))
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
			return runsFailure(do(cmd.Context(), c, tgr.RunID(id), cmd))
		},
	}
}

func (v *runsVerbs) print(cmd *cobra.Command, value any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(value)
}

// onlyFlags are the arguments of a list: none.
func onlyFlags(cmd *cobra.Command, args []string) error {
	if len(args) != 0 {
		return runsUsage("%s takes no arguments; filter with its flags", cmd.CommandPath())
	}
	return nil
}

func (v *runsVerbs) listCmd() *cobra.Command {
	var f web.Filter
	var status string
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List runs, the newest first",
		Args: onlyFlags,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := v.client()
			if err != nil {
				return runsFailure(err)
			}
			f.Status = tgr.Status(status)
			list, err := c.Runs(cmd.Context(), f)
			switch {
			case err != nil:
				return runsFailure(err)
			case v.json:
				return v.print(cmd, list)
			}
			return v.table(cmd.OutOrStdout(), list)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Repo, "repo", "", "only runs of this repository, owner/name")
	flags.StringVar(&f.Workflow, "workflow", "", "only runs of this workflow, by file or name")
	flags.StringVar(&f.Branch, "branch", "", "only runs of this branch or tag")
	flags.StringVar(&f.Event, "event", "", "only runs of this event")
	flags.StringVar(&status, "status", "", "only runs in this status: pending, queued, in_progress, completed")
	flags.IntVarP(&f.Limit, "limit", "L", 30, fmt.Sprintf("how many at most, up to %d", web.MaxRuns))
	flags.Int64Var((*int64)(&f.Before), "before", 0, "only runs with a lower id: the next page")
	flags.BoolVar(&v.json, "json", false, "print JSON")
	return cmd
}

func (v *runsVerbs) table(out io.Writer, list web.RunList) error {
	if len(list.Runs) == 0 {
		_, err := fmt.Fprintln(out, "no runs")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RUN\tSTATE\tWORKFLOW\tTITLE\tREPOSITORY\tREF\tEVENT\tCREATED\tTOOK")
	for _, r := range list.Runs {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, v.state(r.Status, r.Conclusion),
			v.text(cmp.Or(r.WorkflowName, r.WorkflowFile, "-"), 30), v.text(cmp.Or(r.Title, "-"), 50), v.text(r.Event.Repo.FullName, 60),
			v.text(v.ref(r.Event.Ref), 40), v.text(r.Event.Name, 20), r.Created.Local().Format("2006-01-02 15:04:05"), v.took(r.Started, r.Finished))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if list.Next != 0 {
		fmt.Fprintf(out, "older runs: --before %d\n", list.Next)
	}
	return nil
}

func (v *runsVerbs) showCmd() *cobra.Command {
	var attempt int
	var status bool
	cmd := v.verb("show", "Show a run with its jobs, steps and annotations", func(ctx context.Context, c *web.Client, id tgr.RunID, cmd *cobra.Command) error {
		d, err := c.Run(ctx, id, attempt)
		if err != nil {
			return err
		}
		if v.json {
			err = v.print(cmd, d)
		}
		if attempt > 0 && attempt < d.Attempt { // the run is as its latest attempt is
			d.Attempt, d.Started, d.Finished, d.Reason, d.CancelReason, d.Hold, d.Notes = attempt, time.Time{}, time.Time{}, "", "", "", nil
			d.Status, d.Conclusion = tgr.FoldJobs(d.Jobs)
		}
		if !v.json {
			v.detail(cmd.OutOrStdout(), d)
		}
		if err == nil && status && (!d.Status.Done() || d.Conclusion.Failed()) {
			return runsError{1, fmt.Errorf("run %d: %s", d.ID, v.state(d.Status, d.Conclusion))}
		}
		return err
	})
	cmd.Flags().IntVar(&attempt, "attempt", 0, "whose jobs to show (default: the latest attempt's)")
	cmd.Flags().BoolVar(&status, "exit-status", false, "exit with 1 unless the run succeeded")
	cmd.Flags().BoolVar(&v.json, "json", false, "print JSON")
	return cmd
}

func (v *runsVerbs) detail(w io.Writer, d web.RunDetail) {
	number := ""
	if d.Number != 0 { // it has been planned
		number = fmt.Sprintf(" #%d", d.Number)
	}
	fmt.Fprintf(w, "%s%s (run %d, attempt %d)\n", v.text(cmp.Or(d.Title, d.WorkflowName, d.WorkflowFile, d.Event.Name), 200), number, d.ID, d.Attempt)
	fmt.Fprintf(w, "%s %s at %s, %s by %s\n", v.text(d.Event.Repo.FullName, 200), v.text(v.ref(d.Event.Ref), 200), v.text(d.Event.SHA[:min(len(d.Event.SHA), 12)], 12),
		v.text(d.Event.Name, 40), v.text(cmp.Or(d.Event.Actor, "unknown"), 60))
	v.line(w, "", d.Status, d.Conclusion, "", v.took(d.Started, d.Finished), cmp.Or(d.Reason, d.CancelReason))
	if d.Notes != nil && d.Notes.Parsed.Reason != "disabled" { // otherwise no model was asked, and nobody expects one
		fmt.Fprintln(w, v.readBy(d.Notes.Parsed))
	}
	if d.Hold != "" {
		fmt.Fprintf(w, "on hold: %s\n", v.text(d.Hold, 500))
	}
	for _, what := range web.Waiting(d.Run, d.Jobs) {
		fmt.Fprintf(w, "to go on: tgr approve %d %s\n", d.ID, v.text(what, 100))
	}
	for _, j := range d.Jobs {
		fmt.Fprintln(w)
		v.line(w, "", j.Status, j.Conclusion, fmt.Sprintf("%s (job %d)", v.text(cmp.Or(j.Name, j.Key), 200), j.ID), v.took(j.Started, j.Finished), j.Reason)
		for _, s := range j.Steps {
			detail := s.Reason
			if detail == "" && s.ExitCode != nil && *s.ExitCode != 0 {
				detail = fmt.Sprintf("exit status %d", *s.ExitCode)
			}
			v.line(w, "  ", s.Status, s.Conclusion, fmt.Sprintf("%d %s", s.Number, v.text(s.Name, 200)), v.took(s.Started, s.Finished), detail)
		}
		for _, a := range j.Annotations {
			place := v.text(a.File, 300)
			if a.Line > 0 {
				place += ":" + strconv.Itoa(a.Line)
			}
			if place != "" {
				place += ": "
			}
			fmt.Fprintf(w, "  %s: %s%s\n", v.text(a.Level, 20), place, v.text(a.Message, 1000))
		}
	}
}

// line prints where something is: a mark, the name, how long it took, why.
func (v *runsVerbs) line(w io.Writer, indent string, s tgr.Status, c tgr.Conclusion, name, took, reason string) {
	parts := []string{indent + v.state(s, c)}
	for _, p := range []string{name, took} {
		if p != "" && p != "-" {
			parts = append(parts, p)
		}
	}
	text := strings.Join(parts, "  ")
	if reason != "" {
		text += ": " + v.text(reason, 500)
	}
	fmt.Fprintln(w, text)
}

func (v *runsVerbs) logsCmd() *cobra.Command {
	var follow bool
	var job string
	var o web.LogOptions
	cmd := v.verb("logs", "Print the logs of a run's jobs", func(ctx context.Context, c *web.Client, id tgr.RunID, cmd *cobra.Command) error {
		if v.json && !follow {
			return runsUsage("--json goes with --follow: what was logged is text")
		}
		p := &runsPrinter{verbs: v, client: c, out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(), json: v.json, stamps: o.Timestamps, step: o.Step}
		p.show = web.Plain
		if f, ok := p.out.(*os.File); ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd())) {
			p.show = func(text string) string { return web.Terminal(unmarked(text)) }
		}
		if follow {
			return p.follow(ctx, id, job)
		}
		return p.read(ctx, id, job, o)
	})
	flags := cmd.Flags()
	flags.BoolVarP(&follow, "follow", "f", false, "go on until the run, or the job, has ended; exit with 1 if it failed")
	flags.StringVarP(&job, "job", "j", "", "only this job: its id, key or name")
	flags.IntVar(&o.Step, "step", 0, "only the lines of this step")
	flags.BoolVar(&o.Timestamps, "timestamps", false, "begin each line with its time")
	flags.BoolVar(&v.json, "json", false, "with --follow, print each line as JSON")
	return cmd
}

func (v *runsVerbs) cancelCmd() *cobra.Command {
	var job, reason string
	cmd := v.verb("cancel", "Cancel a run, or one job of it", func(ctx context.Context, c *web.Client, id tgr.RunID, cmd *cobra.Command) error {
		j, err := v.find(ctx, c, id, job)
		if err != nil {
			return err
		}
		a, err := c.Cancel(ctx, id, web.CancelRequest{Job: j.ID, Reason: reason, By: os.Getenv("USER")})
		return v.accepted(cmd, a, err)
	})
	cmd.Long = "Cancel a run, or one job of it.\n\nJobs whose condition still holds, such as if: always(), run in spite of it; cancelling once more ends those too."
	cmd.Flags().StringVarP(&job, "job", "j", "", "only this job: its id, key or name")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever asks")
	cmd.Flags().BoolVar(&v.json, "json", false, "print JSON")
	return cmd
}

func (v *runsVerbs) rerunCmd() *cobra.Command {
	var job string
	var failed bool
	cmd := v.verb("rerun", "Run all jobs of a run again, or the failed ones, or one", func(ctx context.Context, c *web.Client, id tgr.RunID, cmd *cobra.Command) error {
		r := web.Rerun{What: web.RerunAll, By: os.Getenv("USER")}
		switch {
		case failed && job != "":
			return runsUsage("--failed and --job exclude each other")
		case failed:
			r.What = web.RerunFailed
		case job != "":
			j, err := v.find(ctx, c, id, job)
			if err != nil {
				return err
			}
			r.What, r.Job = web.RerunJob, j.ID
		}
		a, err := c.Rerun(ctx, id, r)
		return v.accepted(cmd, a, err)
	})
	cmd.Flags().StringVarP(&job, "job", "j", "", "this job, and those that need it: its id, key or name")
	cmd.Flags().BoolVar(&failed, "failed", false, "the jobs that failed, and those that need them")
	cmd.Flags().BoolVar(&v.json, "json", false, "print JSON")
	return cmd
}

func (v *runsVerbs) startCmd() *cobra.Command {
	d := web.Dispatch{By: os.Getenv("USER")}
	var inputs []string
	cmd := &cobra.Command{Use: "start WORKFLOW", Short: "Start a workflow by hand, as workflow_dispatch does",
		Long: `Start a workflow of a repository by hand. The workflow is its file, such as release.yml, has to listen to
workflow_dispatch, and is taken from the branch or tag it is started for.`,
		Example: "  tgr runs start release.yml -R acme/app --ref v1.2 --input level=high",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || d.Repo == "" {
				return runsUsage("%s takes the file of a workflow, and its repository: -R owner/name", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			d.Workflow, d.Inputs = args[0], map[string]string{}
			for _, kv := range inputs {
				name, value, ok := strings.Cut(kv, "=")
				if !ok || name == "" {
					return runsUsage("--input %s: expected name=value", kv)
				}
				d.Inputs[name] = value
			}
			c, err := v.client()
			if err != nil {
				return runsFailure(err)
			}
			a, err := c.Dispatch(cmd.Context(), d)
			return runsFailure(v.accepted(cmd, a, err))
		},
	}
	cmd.Flags().StringVarP(&d.Repo, "repo", "R", "", "the repository, owner/name, which has sent a webhook before (required)")
	cmd.Flags().StringVar(&d.Ref, "ref", "", "branch or tag, such as main or v1.2, or the full `ref`; default: the default branch")
	cmd.Flags().StringArrayVar(&inputs, "input", nil, "input of the workflow, name=value; may be repeated")
	cmd.Flags().BoolVar(&v.json, "json", false, "print JSON")
	return cmd
}

func (v *runsVerbs) schedulesCmd() *cobra.Command {
	var repo string
	cmd := &cobra.Command{Use: "schedules", Short: "List what is started next by its on.schedule, the soonest first",
		Args: onlyFlags,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := v.client()
			if err != nil {
				return runsFailure(err)
			}
			list, err := c.Schedules(cmd.Context(), repo)
			switch {
			case err != nil:
				return runsFailure(err)
			case v.json:
				return v.print(cmd, list)
			case len(list.Schedules) == 0:
				fmt.Fprintln(cmd.OutOrStdout(), "nothing is scheduled")
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NEXT\tREPOSITORY\tWORKFLOW\tCRON\tTIME ZONE")
			for _, s := range list.Schedules {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Next.Local().Format("2006-01-02 15:04"), v.text(s.Repo, 60), v.text(s.Workflow, 60),
					v.text(s.Cron, 60), v.text(cmp.Or(s.Timezone, "UTC"), 40))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVarP(&repo, "repo", "R", "", "only of this repository, owner/name")
	cmd.Flags().BoolVar(&v.json, "json", false, "print JSON")
	return cmd
}

func (v *runsVerbs) accepted(cmd *cobra.Command, a web.Accepted, err error) error {
	switch {
	case err != nil:
		return err
	case v.json:
		return v.print(cmd, a)
	}
	for _, id := range a.Runs {
		text := fmt.Sprintf("run %d %s", id, a.Message)
		if a.Attempt != 0 {
			text += fmt.Sprintf(", attempt %d", a.Attempt)
		}
		fmt.Fprintln(cmd.OutOrStdout(), text)
	}
	return nil
}

// find returns the job of a run's latest attempt that a person means; the zero Job for "".
func (v *runsVerbs) find(ctx context.Context, c *web.Client, run tgr.RunID, name string) (tgr.Job, error) {
	if name == "" {
		return tgr.Job{}, nil
	}
	d, err := c.Run(ctx, run, 0)
	if err != nil {
		return tgr.Job{}, err
	}
	return v.choose(d, name)
}

func (v *runsVerbs) choose(d web.RunDetail, name string) (tgr.Job, error) {
	var found, all []string
	var job tgr.Job
	for _, j := range d.Jobs {
		label := fmt.Sprintf("%s (job %d)", v.text(cmp.Or(j.Name, j.Key), 100), j.ID)
		all = append(all, label)
		if name == j.ID.String() || name == j.Name {
			return j, nil
		}
		if name == j.Key {
			found, job = append(found, label), j
		}
	}
	switch {
	case len(found) == 1:
		return job, nil
	case len(found) > 1:
		return tgr.Job{}, runsUsage("run %d has %d jobs %q: %s", d.ID, len(found), name, strings.Join(found, ", "))
	case len(all) == 0:
		return tgr.Job{}, runsUsage("run %d has no jobs yet", d.ID)
	}
	return tgr.Job{}, runsUsage("run %d has no job %q; it has %s", d.ID, name, strings.Join(all, ", "))
}

// text is what a terminal may show of a name, in at most n characters.
func (v *runsVerbs) text(s string, n int) string {
	r := []rune(strings.ReplaceAll(web.Plain(strings.ReplaceAll(s, "\n", " ")), "\t", " "))
	if len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return string(r)
}

func (v *runsVerbs) state(s tgr.Status, c tgr.Conclusion) string {
	marks := map[string]string{"success": "✓", "failure": "✗", "timed_out": "✗", "startup_failure": "✗", "cancelled": "⊘", "skipped": "–", "in_progress": "●"}
	word := cmp.Or(string(c), string(s))
	return cmp.Or(marks[word], "○") + " " + v.text(strings.ReplaceAll(word, "_", " "), 20)
}

func (v *runsVerbs) ref(ref string) string {
	return strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/"), "refs/")
}

func (v *runsVerbs) took(start, end time.Time) string {
	if start.IsZero() || end.IsZero() {
		return "-"
	}
	if d := end.Sub(start); d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return end.Sub(start).Round(time.Second).String()
}

// runsPrinter prints the logs of a run's jobs, several at a time if it follows.
type runsPrinter struct {
	verbs  *runsVerbs
	client *web.Client
	out    io.Writer
	notes  io.Writer // for what is not a line of a log
	show   func(string) string
	json   bool
	stamps bool
	step   int

	mu   sync.Mutex // guards out, jobs and what follows of each job's log
	jobs int        // of the run, as far as is known: with more than one, each line says whose it is
}

// read prints what has been logged, job after job.
func (p *runsPrinter) read(ctx context.Context, id tgr.RunID, name string, o web.LogOptions) error {
	d, err := p.client.Run(ctx, id, 0)
	if err != nil {
		return err
	}
	jobs := d.Jobs
	if name != "" {
		j, err := p.verbs.choose(d, name)
		if err != nil {
			return err
		}
		jobs = []tgr.Job{j}
	}
	p.jobs = len(jobs)
	for _, j := range jobs {
		if err := p.copy(ctx, j, o); err != nil {
			return err
		}
	}
	return nil
}

func (p *runsPrinter) copy(ctx context.Context, j tgr.Job, o web.LogOptions) error {
	log, err := p.client.Log(ctx, j.ID, o)
	if err != nil {
		return err
	}
	defer log.Close()
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 8<<20) // the server's lines have at most 1 MiB
	for lines.Scan() {
		stamp, line := "", lines.Text()
		if o.Timestamps {
			stamp, line, _ = strings.Cut(line, " ")
			stamp += " "
		}
		if err := p.write(j, stamp, line); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return runsError{3, fmt.Errorf("the log of job %d broke off: %w", j.ID, err)}
	}
	return nil
}

// write prints one line of a job's log, with the time that goes before it, if any.
func (p *runsPrinter) write(j tgr.Job, stamp, line string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	prefix := ""
	if p.jobs > 1 {
		prefix = p.verbs.text(cmp.Or(j.Name, j.Key), 40) + " | "
	}
	_, err := fmt.Fprintln(p.out, prefix+p.show(stamp)+p.show(line))
	return err
}

// follow prints what is logged until the run, or the named job of it, has ended. Its error says how it did.
func (p *runsPrinter) follow(ctx context.Context, id tgr.RunID, name string) error {
	if name != "" {
		j, err := p.verbs.find(ctx, p.client, id, name)
		if err != nil {
			return err
		}
		end, err := p.followJob(ctx, j)
		if err != nil {
			return err
		}
		return p.verdict(fmt.Sprintf("job %d", j.ID), end)
	}
	d, err := p.client.Run(ctx, id, 0)
	if err != nil {
		return err
	}
	p.jobs = len(d.Jobs)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	known, begun := map[tgr.JobID]bool{}, map[tgr.JobID]bool{}
	end, err := p.client.Watch(ctx, id, func(e web.Event) error {
		var j tgr.Job
		if e.Name != "job" {
			return nil
		}
		if err := json.Unmarshal(e.Data, &j); err != nil {
			return fmt.Errorf("a job of run %d cannot be read: %w", id, err)
		}
		known[j.ID] = true
		p.mu.Lock()
		p.jobs = max(p.jobs, len(known))
		p.mu.Unlock()
		if begun[j.ID] || j.Started.IsZero() {
			return nil // it has nothing to say, or not yet
		}
		begun[j.ID] = true
		wg.Go(func() {
			if _, err := p.followJob(ctx, j); err != nil {
				cancel(err)
			}
		})
		return nil
	})
	if err != nil {
		cancel(err)
	}
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return p.verdict(fmt.Sprintf("run %d", id), end)
}

// followJob prints a job's log until the job has ended.
func (p *runsPrinter) followJob(ctx context.Context, j tgr.Job) (web.StreamEnd, error) {
	try := 0
	return p.client.Follow(ctx, j.ID, 0, func(l web.LogLine) error {
		if try != 0 && l.Try != try {
			fmt.Fprintf(p.notes, "%s is tried again, on machine %d\n", p.verbs.text(cmp.Or(j.Name, j.Key), 40), l.Try)
		}
		if try = l.Try; p.step != 0 && l.Step != p.step {
			return nil
		}
		if p.json {
			p.mu.Lock()
			defer p.mu.Unlock()
			return json.NewEncoder(p.out).Encode(struct {
				Job  tgr.JobID `json:"job_id"`
				Name string    `json:"job"`
				web.LogLine
			}{j.ID, j.Name, l})
		}
		stamp := ""
		if p.stamps {
			stamp = l.Time.UTC().Format("2006-01-02T15:04:05.0000000Z ")
		}
		return p.write(j, stamp, l.Text)
	})
}

func (p *runsPrinter) verdict(what string, end web.StreamEnd) error {
	text := what + ": " + p.verbs.state(end.Status, end.Conclusion)
	if end.Reason != "" {
		text += ": " + p.verbs.text(end.Reason, 500)
	}
	if end.Conclusion.Failed() {
		return runsError{1, errors.New(text)}
	}
	fmt.Fprintln(p.notes, text)
	return nil
}
