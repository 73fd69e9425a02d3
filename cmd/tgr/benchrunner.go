package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/joblog"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/workflow"
)

const (
	manySteps   = 100
	manySecrets = 500
	floodLine   = "%012d the quick brown fox jumps over the lazy dog, and whatever else a build says in a line\n"
	floodBytes  = 99      // of a line
	floodLines  = 700_000 // of the file that a step prints again and again
)

// newBenchRunnerCmd returns `tgr bench runner`, which measures the runner against its bars.
func newBenchRunnerCmd() *cobra.Command {
	b := benchRunner{benchVM: benchVM{}}
	cmd := &cobra.Command{
		Use:   "runner",
		Short: "Measure the runner against its bars: short jobs, many steps, a flood of output, many secrets",
		Long: `Run jobs without isolation, and put what the runner adds to their processes beside what it may add, in one run: a trivial
job beside act (where it is installed), a job of 100 steps beside the same processes without a runner, and a step that
prints a gigabyte into a log on disk, of which every line is looked for afterwards, without secrets and with 500.

A bar that is missed does not make the command fail.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out, b.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return ours(b.run(cmd.Context()))
		},
	}
	cmd.Flags().IntVarP(&b.n, "runs", "n", 20, "measurements of short jobs")
	cmd.Flags().IntVar(&b.floods, "floods", 3, "measurements of floods; 0: none")
	cmd.Flags().Int64Var(&b.bytes, "bytes", 1<<30, "bytes of a flood")
	cmd.AddCommand(newBenchFloodCmd())
	return cmd
}

// benchRunner is one call of `tgr bench runner`.
type benchRunner struct {
	benchVM // its figures
	floods  int
	bytes   int64
}

// rate notes a figure that is not a time.
func (b *benchRunner) rate(f figure, sample float64) {
	b.note(f).Samples = append(b.note(f).Samples, sample)
}

// note returns the figure of a name, with the bar that it was first asked for with.
func (b *benchRunner) note(f figure) *figure {
	have := b.figureOf(f.Name, f.Unit)
	if len(have.Samples) == 0 {
		have.Bar, have.AtLeast = f.Bar, f.AtLeast
	}
	return have
}

func (b *benchRunner) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "tgr-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	before := loadAverage()
	if err := b.trivial(ctx); err != nil {
		return err
	}
	if err := b.many(ctx); err != nil {
		return err
	}
	if err := b.flooded(ctx); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "load average %s before, %s after\n\n", before, loadAverage())
	return b.table()
}

// trivial measures whole programs, in turn.
func (b *benchRunner) trivial(ctx context.Context) error {
	o := &bench{out: b.err, n: b.n}
	if err := o.trivialJob(ctx, b.dir); err != nil {
		return err
	}
	act := time.Duration(0)
	for _, r := range o.rows {
		if r.name == actRow && len(r.samples) > 0 {
			act = quantile(r.samples, 0.5)
		}
	}
	for _, r := range o.rows {
		for _, d := range r.samples {
			b.took(r.name, d)
		}
		if strings.HasSuffix(r.name, ", process") && act > 0 {
			b.figureOf(r.name, "ms").Bar = 0.5 * float64(act.Microseconds()) / 1000
		}
	}
	return nil
}

// many measures what each of many steps costs beside its process.
func (b *benchRunner) many(ctx context.Context) error {
	dir := filepath.Join(b.dir, "many", workflowDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := "on: push\njobs:\n  many:\n    runs-on: ubuntu-latest\n    steps:\n" + strings.Repeat("      - run: echo one\n", manySteps)
	script := filepath.Join(b.dir, "one.sh")
	for name, data := range map[string]string{filepath.Join(dir, "many.yml"): text, script: "echo one\n"} {
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for range max(1, b.n/4) {
		began := time.Now()
		for range manySteps {
			if out, err := exec.CommandContext(ctx, "bash", "-e", script).CombinedOutput(); err != nil {
				return fmt.Errorf("bash: %w: %s", err, out)
			}
		}
		bare := time.Since(began)
		cmd := exec.CommandContext(ctx, self, "run", "-q", "--isolation", "process")
		cmd.Dir = filepath.Dir(filepath.Dir(dir))
		began = time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("tgr run: %w:\n%s", err, out)
		}
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / manySteps }
		b.rate(figure{Name: "bash -e, one process", Unit: "ms"}, ms(bare))
		b.rate(figure{Name: "job of 100 steps, each step over its process", Unit: "ms", Bar: 5}, ms(time.Since(began)-bare))
	}
	return nil
}

// flooded measures a step that prints a great deal, each time in a process of its own, whose memory is measured, too.
func (b *benchRunner) flooded(ctx context.Context) error {
	if b.floods == 0 {
		return nil
	}
	file := filepath.Join(b.dir, "lines")
	if err := writeFlood(file, floodLines); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	size := fmt.Sprintf("%d MiB of log", b.bytes>>20)
	for range b.floods {
		plain := 0.0
		for _, secrets := range []int{0, manySecrets} {
			cmd := exec.CommandContext(ctx, self, "bench", "runner", "flood", file, strconv.FormatInt(b.bytes/(floodLines*floodBytes), 10), strconv.Itoa(secrets))
			cmd.Stderr = b.err
			out, err := cmd.Output()
			var r floodResult
			if err == nil {
				err = json.Unmarshal(out, &r)
			}
			if err != nil {
				return fmt.Errorf("a flood with %d secrets: %w", secrets, err)
			}
			if secrets == 0 {
				plain = r.Rate
				b.rate(figure{Name: size + ", nothing lost or reordered", Unit: "MB/s", Bar: 200, AtLeast: true}, r.Rate)
			} else {
				b.rate(figure{Name: size + fmt.Sprintf(", %d secrets", secrets), Unit: "MB/s"}, r.Rate)
				b.rate(figure{Name: fmt.Sprintf("what %d secrets cost of it", secrets), Unit: "%", Bar: 20}, 100*(1-r.Rate/plain))
			}
			b.rate(figure{Name: "memory of the process meanwhile, at most", Unit: "MB", Bar: 200}, r.Peak)
		}
	}
	return nil
}

// table prints the figures.
func (b *benchRunner) table() error {
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tn\tmedian\tp99\tbar\t")
	for _, f := range b.figures {
		f.settle()
		f.row(w)
	}
	return w.Flush()
}

// writeFlood makes the file of a flood.
func writeFlood(name string, lines int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	for i := range lines {
		fmt.Fprintf(w, floodLine, i)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// floodResult is what one flood measures.
type floodResult struct {
	Rate float64 `json:"rate"` // 10^6 bytes of output a second, from the step's beginning to its end
	Peak float64 `json:"peak"` // of the process's memory, in 10^6 bytes
}

// newBenchFloodCmd is the process of one flood: the server's part of a job, from the guest protocol to the log on disk.
func newBenchFloodCmd() *cobra.Command {
	return &cobra.Command{
		Use: "flood FILE TIMES SECRETS", Hidden: true, Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			times, err1 := strconv.Atoi(args[1])
			secrets, err2 := strconv.Atoi(args[2])
			if err1 != nil || err2 != nil {
				return usagef("want numbers")
			}
			r, err := flood(cmd.Context(), args[0], floodLines, times, secrets)
			if err != nil {
				return ours(err)
			}
			return printJSON(cmd.OutOrStdout(), r)
		},
	}
}

// flood runs a job that prints a file again and again into a log on disk, and looks for every line there.
func flood(ctx context.Context, file string, lines, times, secrets int) (r floodResult, err error) {
	dir, err := os.MkdirTemp("", "tgr-bench-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	const most = 1 << 40
	logs, err := joblog.Open(joblog.Config{Dir: filepath.Join(dir, "logs"), Limits: joblog.Limits{Step: most, Job: most}})
	if err != nil {
		return r, err
	}
	defer logs.Close()
	out, err := logs.Create(1, 1)
	if err != nil {
		return r, err
	}
	machines, err := openMachines(ctx, machineConfig{isolation: "process", dir: filepath.Join(dir, "machines"), mortal: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		return r, err
	}
	defer machines.Close()
	m, release, err := machines.Acquire(ctx, dispatch.Spec{ID: "flood"})
	if err != nil {
		return r, err
	}
	defer release()
	job, err := floodJob(file, times, secrets)
	if err != nil {
		return r, err
	}
	res, err := runner.Run(ctx, runner.Config{Machine: m.Machine, Sink: logSink{out}, Dirs: m.Dirs, Env: m.Env}, job)
	if err != nil {
		return r, err
	}
	if res.Conclusion != tgr.Success {
		return r, fmt.Errorf("the job ended as %s: %s", res.Conclusion, res.Reason)
	}
	if err := out.Close(); err != nil {
		return r, err
	}
	step := res.Steps[1]
	size := float64(times) * float64(lines*floodBytes)
	r.Rate = size / 1e6 / step.Finished.Sub(step.Started).Seconds()
	if r.Peak, err = peakMemory(); err != nil {
		return r, err
	}
	return r, checkFlood(ctx, logs, lines, times)
}

// floodJob is a job whose only step prints a file again and again.
func floodJob(file string, times, secrets int) (runner.Job, error) {
	text := fmt.Sprintf("on: push\njobs:\n  flood:\n    runs-on: ubuntu-latest\n    steps:\n      - run: for i in $(seq %d); do cat '%s'; done\n", times, file)
	w, problems := workflow.Parse("flood.yml", []byte(text))
	if workflow.Failed(problems) {
		return runner.Job{}, fmt.Errorf("%v", problems)
	}
	p, problems := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: "push"}})
	if workflow.Failed(problems) {
		return runner.Job{}, fmt.Errorf("%v", problems)
	}
	in, err := p.Jobs[0].Expand(p, &workflow.Scope{})
	if err != nil {
		return runner.Job{}, err
	}
	job := runner.Job{Plan: p, Job: &p.Jobs[0], Instance: in[0], Secrets: map[string]string{}}
	for i := range secrets {
		job.Secrets[fmt.Sprintf("SECRET_%d", i)] = fmt.Sprintf("ghs_%s%04d", tgr.NewToken(), i)
	}
	return job, nil
}

// logSink writes lines to the log as they come.
type logSink struct{ log *joblog.Writer }

// Line implements runner.Sink.
func (s logSink) Line(l tgr.LogLine) { _ = s.log.Append(l) } // an error stays, and Close returns it

// Steps implements runner.Sink.
func (logSink) Steps([]tgr.Step) {}

// checkFlood reads the log: every line is there, in order.
func checkFlood(ctx context.Context, logs *joblog.Store, lines, times int) error {
	next, round := 0, 0
	for l, err := range logs.Read(ctx, 1, joblog.Range{Try: 1}) {
		if err != nil {
			return err
		}
		if len(l.Text) < 13 || l.Text[12] != ' ' {
			continue // the headers
		}
		n, err := strconv.Atoi(l.Text[:12])
		if err != nil {
			continue
		}
		if n != next {
			return fmt.Errorf("line %d of round %d was followed by line %d", next-1, round, n)
		}
		if next++; next == lines {
			next, round = 0, round+1
		}
	}
	if next != 0 || round != times {
		return fmt.Errorf("the log ends in round %d, line %d; want %d rounds", round, next, times)
	}
	return nil
}

// peakMemory is the most memory that this process has had, in 10^6 bytes.
func peakMemory() (float64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			return kib * 1024 / 1e6, nil
		}
	}
	return 0, fmt.Errorf("/proc/self/status does not say how much memory this process had")
}
