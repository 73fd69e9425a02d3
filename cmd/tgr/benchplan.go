package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr/workflow"
)

// What planning may cost: CPU per file, and as a part of what it costs act.
const (
	maxPlanCPU    = 300 * time.Microsecond
	maxPlanOfAct  = 0.1
	planWorkflows = "../shared/suites/workflows" // real files, where they are kept beside the module
)

// newBenchPlanCmd returns `tgr bench plan`, which measures the workflow language alone.
func newBenchPlanCmd() *cobra.Command {
	var b benchPlan
	cmd := &cobra.Command{
		Use:   "plan [DIR]",
		Short: "Measure what it costs to plan a workflow file, act beside us",
		Long: `Parse each workflow file of a folder, match it against a push and compile its plan, over and over on one core, and
say what that costs: CPU time per file (the garbage collector's included) and allocations.

Without DIR the files are those of ` + planWorkflows + ` or else of .github/workflows.

act is measured in the same run where it is in PATH or in Go's bin folder: the CPU time of 'act -l -W FILE' for a sample
of the files, which is what a file costs its users. Most of that is the start of a process, which is no fault of act's
planner; so the files that act accepts are also given to one process together, and what 'act --version' takes is
subtracted. Ratios are on the same files.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b.out = cmd.OutOrStdout()
			dir := planWorkflows
			if len(args) == 1 {
				dir = args[0]
			} else if _, err := os.Stat(dir); err != nil {
				dir = workflowDir
			}
			files, err := planFiles(dir)
			if err != nil {
				return usageError{err}
			}
			if b.passes < 1 {
				return usagef("--passes is %d; want 1 or more", b.passes)
			}
			return ours(b.run(cmd.Context(), files))
		},
	}
	cmd.Flags().IntVar(&b.passes, "passes", 20, "how often each file is planned, after twice that do not count")
	cmd.Flags().IntVar(&b.sample, "act-files", 40, "files for act; 0: none")
	return cmd
}

// benchPlan is one call of `tgr bench plan`.
type benchPlan struct {
	out            io.Writer
	passes, sample int
}

// benchFile is a file that is planned.
type benchFile struct {
	path string
	src  []byte
}

// planFiles reads the YAML files of a folder.
func planFiles(dir string) ([]benchFile, error) {
	var files []benchFile
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err != nil || d.IsDir() || ext != ".yml" && ext != ".yaml" {
			return err
		}
		src, err := readWorkflow(path)
		files = append(files, benchFile{path, src})
		return err
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("there are no workflow files in %s", dir)
	}
	return files, err
}

func (b *benchPlan) run(ctx context.Context, files []benchFile) error {
	ours, allocated, err := b.plan(ctx, files)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CPU per file\tn\tmedian\tp99\tmean\ttgr/act")
	mean := b.row(w, "tgr: parse, match and compile for a push", ours, 0)
	act := findAct()
	if act == "" || b.sample == 0 {
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(b.out, "act is not installed, or was not asked for, so there is nothing to compare with: go install github.com/nektos/act@latest")
		return b.verdict(allocated, mean, 0)
	}
	alone, together, accepted, err := b.act(ctx, act, files)
	if err != nil {
		return err
	}
	var same []time.Duration // ours for the files that act accepts
	for _, i := range accepted {
		same = append(same, ours[i])
	}
	us := b.row(w, "tgr: those of them that act is given, and accepts", same, 0)
	theirs := b.row(w, "act -l -W FILE, a process each", alone, us)
	b.row(w, "act -l -W DIR, all in one process, without its start", []time.Duration{together}, us)
	if err := w.Flush(); err != nil {
		return err
	}
	return b.verdict(allocated, mean, float64(us)/float64(theirs))
}

// row prints a row and returns the mean. The ratio is ours to theirs.
func (b *benchPlan) row(w io.Writer, name string, samples []time.Duration, us time.Duration) time.Duration {
	var sum time.Duration
	for _, s := range samples {
		sum += s
	}
	mean := sum / time.Duration(len(samples))
	ratio := ""
	if us > 0 && mean > 0 {
		ratio = fmt.Sprintf("%.3f", float64(us)/float64(mean))
	}
	fmt.Fprintf(w, "%s\t%d\t%.3f ms\t%.3f ms\t%.3f ms\t%s\n", name, len(samples), inMillis(quantile(samples, 0.5)), inMillis(quantile(samples, 0.99)), inMillis(mean), ratio)
	return mean
}

func inMillis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (b *benchPlan) verdict(a allocations, mean time.Duration, ofAct float64) error {
	met := func(ok bool) string {
		if ok {
			return "met"
		}
		return "MISSED"
	}
	_, err := fmt.Fprintf(b.out, "allocations per file: %.0f, %.1f KB\nat most %.1f ms of CPU per file: %s\n", a.count, a.bytes/1024, inMillis(maxPlanCPU), met(mean <= maxPlanCPU))
	if err == nil && ofAct > 0 {
		_, err = fmt.Fprintf(b.out, "at most %.0f %% of act -l, a process each: %s\n", maxPlanOfAct*100, met(ofAct <= maxPlanOfAct))
	}
	return err
}

// allocations are those of one file.
type allocations struct{ count, bytes float64 }

// plan measures ourselves: for each file the mean of all passes.
func (b *benchPlan) plan(ctx context.Context, files []benchFile) ([]time.Duration, allocations, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one core, the garbage collector on it too
	sums := make([]time.Duration, len(files))
	var before, after runtime.MemStats
	for pass := range 3 * b.passes {
		if ctx.Err() != nil {
			return nil, allocations{}, ctx.Err()
		}
		if pass == 2*b.passes {
			runtime.ReadMemStats(&before)
		}
		for i, f := range files {
			began := processCPU()
			planForPush(f)
			if pass >= 2*b.passes {
				sums[i] += processCPU() - began
			}
		}
	}
	runtime.ReadMemStats(&after)
	for i := range sums {
		sums[i] /= time.Duration(b.passes)
	}
	n := float64(b.passes * len(files))
	return sums, allocations{float64(after.Mallocs-before.Mallocs) / n, float64(after.TotalAlloc-before.TotalAlloc) / n}, nil
}

// planForPush does what the server does with each file of a pushed commit.
func planForPush(f benchFile) {
	w, problems := workflow.Parse(f.path, f.src)
	if w == nil || workflow.Failed(problems) {
		return
	}
	t := workflow.Trigger{Event: "push", Ref: "refs/heads/main"}
	w.Match(t)
	workflow.Compile(w, workflow.Options{Trigger: t})
}

// processCPU is the CPU time that this process has used.
func processCPU() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // cannot fail for ourselves
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// act measures act on a sample: a process per file, and what a file takes where those that it accepts share a process.
func (b *benchPlan) act(ctx context.Context, act string, files []benchFile) (alone []time.Duration, together time.Duration, accepted []int, err error) {
	dir, err := os.MkdirTemp("", "tgr-bench-")
	if err != nil {
		return nil, 0, nil, err
	}
	defer os.RemoveAll(dir)
	call := func(args ...string) (time.Duration, error) {
		cmd := exec.CommandContext(ctx, act, args...)
		cmd.Dir = dir
		// act would ask which image it should use, and keep caches in the home folder.
		cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+dir, "XDG_CONFIG_HOME="+dir, "CI=true")
		err := cmd.Run()
		if cmd.ProcessState == nil {
			return 0, err
		}
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
	}
	folder := filepath.Join(dir, "accepted")
	if err := os.Mkdir(folder, 0o755); err != nil {
		return nil, 0, nil, err
	}
	step := max(1, len(files)/b.sample)
	for i := 0; i < len(files) && len(alone) < b.sample; i += step {
		file := filepath.Join(dir, "w.yml")
		if err := os.WriteFile(file, files[i].src, 0o644); err != nil {
			return nil, 0, nil, err
		}
		took, err := call("-l", "-W", file)
		var refused *exec.ExitError
		if err != nil && !errors.As(err, &refused) {
			return nil, 0, nil, fmt.Errorf("%s: %w", act, err)
		}
		alone = append(alone, took)
		if err == nil {
			accepted = append(accepted, i)
			if err := os.Rename(file, filepath.Join(folder, fmt.Sprintf("w%d.yml", i))); err != nil {
				return nil, 0, nil, err
			}
		}
	}
	if len(accepted) == 0 {
		return nil, 0, nil, fmt.Errorf("act accepts none of %d files", len(alone))
	}
	median := func(args ...string) (time.Duration, error) {
		var samples []time.Duration
		for range 5 {
			took, err := call(args...)
			if err != nil {
				return 0, fmt.Errorf("%s %v: %w", act, args, err)
			}
			samples = append(samples, took)
		}
		slices.Sort(samples)
		return samples[2], nil
	}
	all, err := median("-l", "-W", folder)
	if err != nil {
		return nil, 0, nil, err
	}
	start, err := median("--version")
	return alone, max(all-start, 1) / time.Duration(len(accepted)), accepted, err
}
