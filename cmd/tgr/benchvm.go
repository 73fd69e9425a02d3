package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// newBenchVMCmd returns `tgr bench vm`, which measures virtual machines against their bars.
func newBenchVMCmd() *cobra.Command {
	var b benchVM
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Measure virtual machines against their bars",
		Long: `Restore machines from a snapshot, take them from a pool, run commands, files and jobs through them, and put what that
takes beside what it may take, in one run. Medians and 99th percentiles are over n measurements on this machine, with
whatever else runs on it: the load average is printed, and the phases below a figure show where its time goes.

A bar that is missed does not make the command fail.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out, b.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if b.n < 1 {
				return usagef("--runs is %d; want 1 or more", b.n)
			}
			return ours(b.run(cmd.Context()))
		},
	}
	cmd.Flags().IntVarP(&b.n, "runs", "n", 20, "measurements of each kind")
	cmd.Flags().BoolVar(&b.asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&b.short, "machines", false, "only machines: no jobs, no server and no act")
	return cmd
}

// benchVM is one call of `tgr bench vm`.
type benchVM struct {
	out, err      io.Writer
	n             int
	asJSON, short bool

	image    *image.Image
	provider *qemu.Provider
	size     vm.Spec
	dir      string
	made     int
	figures  []*figure
}

// figure is one row: what was measured, in which unit, and what it may be.
type figure struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`              // ms, MB or MB/s
	Bar     float64   `json:"bar,omitempty"`     // of the median; 0: none
	BarP99  float64   `json:"bar_p99,omitempty"` // 0: none
	AtLeast bool      `json:"at_least,omitempty"`
	N       int       `json:"n"`
	Median  float64   `json:"median"`
	P99     float64   `json:"p99"`
	Met     *bool     `json:"met,omitempty"` // nil: there is no bar
	Samples []float64 `json:"samples"`
}

// bars are what the figures may be. A name that begins with a space is a phase of the figure above it.
func bars() []figure {
	return []figure{
		{Name: "restored: agent answered", Unit: "ms", Bar: 60, BarP99: 150},
		{Name: "restored: first bash -c true ended", Unit: "ms", Bar: 150},
		{Name: "restored, emulator waiting: agent answered", Unit: "ms", Bar: 60, BarP99: 150},
		{Name: "restored, emulator waiting: first bash -c true ended", Unit: "ms", Bar: 150},
		{Name: "8 restored at once: all agents answered", Unit: "ms", Bar: 700},
		{Name: "idle clone of 256 MiB, one of 8: proportional set", Unit: "MB", Bar: 25},
		{Name: "acquired from the pool, prepared", Unit: "ms", Bar: 5},
		{Name: "pooled: first bash -c true", Unit: "ms"},
		{Name: "pooled: first node -e 1", Unit: "ms", Bar: 400},
		{Name: "snapshot of a running machine", Unit: "ms", Bar: 200},
		{Name: "rollback, agent answered", Unit: "ms"},
		{Name: "exec round trip", Unit: "ms", Bar: 3},
		{Name: "put", Unit: "MB/s", Bar: 100, AtLeast: true},
		{Name: "get", Unit: "MB/s", Bar: 100, AtLeast: true},
		{Name: "10 jobs at once ended correctly", Unit: "ms"},
		{Name: "webhook to first log line, VM from the pool", Unit: "ms", Bar: 150},
	}
}

// figureOf returns the figure of a name, in the order in which names are first asked for.
func (b *benchVM) figureOf(name, unit string) *figure {
	for _, f := range b.figures {
		if f.Name == name {
			return f
		}
	}
	f := &figure{Name: name, Unit: unit}
	for _, bar := range bars() {
		if bar.Name == name {
			*f = bar
		}
	}
	b.figures = append(b.figures, f)
	return f
}

// took notes a duration.
func (b *benchVM) took(name string, d time.Duration) {
	f := b.figureOf(name, "ms")
	f.Samples = append(f.Samples, float64(d.Microseconds())/1000)
}

func (b *benchVM) run(ctx context.Context) (err error) {
	if err := ensureImage(ctx, b.err); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "tgr-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.image, err = (&image.Store{}).Open(ctx, ""); err != nil {
		return err
	}
	defer b.image.Close()
	b.size = vm.Spec{Memory: 256 << 20}
	im := b.image
	b.provider, err = qemu.New(qemu.Config{
		Image:   qemu.Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay, Hash: im.Hash()},
		Journal: vm.Journal{Dir: filepath.Join(b.dir, "machines"), Volatile: true},
		Warmup:  qemu.Warmup{ID: im.Warmup(), Run: warmUp(im.Warmup())},
		Log:     slog.New(slog.NewTextHandler(b.err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.provider.Close()) }()
	if err := b.provider.Warm(ctx, b.size); err != nil {
		return err
	}
	before := loadAverage()
	measures := []func(context.Context) error{b.clones, b.eight, b.pool, b.snapshots}
	if !b.short {
		measures = append(measures, b.tenJobs, b.jobs)
	}
	for _, measure := range measures {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return b.print(ctx, before)
}

// jobs measures the server and act, as `tgr bench` does.
func (b *benchVM) jobs(ctx context.Context) error {
	o := &bench{out: b.err, n: b.n, vms: b.n}
	if err := o.trivialJob(ctx, b.dir); err != nil {
		return err
	}
	if err := o.firstLine(ctx, "VM from the pool", "qemu", warmEnv(), b.n); err != nil {
		return err
	}
	act := time.Duration(0)
	for _, r := range o.rows {
		if r.name == actRow {
			act = quantile(r.samples, 0.5)
		}
	}
	for _, r := range o.rows {
		for _, d := range r.samples {
			b.took(r.name, d)
		}
		if strings.HasPrefix(r.name, "trivial 3-step job on a server") && act > 0 {
			b.figureOf(r.name, "ms").Bar = 4 * float64(act.Microseconds()) / 1000
		}
	}
	return nil
}

// report is what --json prints.
type benchReport struct {
	Accelerator string    `json:"accelerator"`
	CPUs        int       `json:"cpus"`
	LoadBefore  string    `json:"load_before"`
	LoadAfter   string    `json:"load_after"`
	Figures     []*figure `json:"figures"`
}

func (b *benchVM) print(ctx context.Context, before string) error {
	v, err := b.provider.Accelerator(ctx)
	if err != nil {
		return err
	}
	for _, f := range b.figures {
		f.settle()
	}
	r := benchReport{Accelerator: v.String(), CPUs: runtime.NumCPU(), LoadBefore: before, LoadAfter: loadAverage(), Figures: b.figures}
	if b.asJSON {
		return printJSON(b.out, r)
	}
	fmt.Fprintf(b.out, "%s; %d processors; load average %s before, %s after\n\n", r.Accelerator, r.CPUs, r.LoadBefore, r.LoadAfter)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tn\tmedian\tp99\tbar\t")
	for _, f := range b.figures {
		f.row(w)
	}
	return w.Flush()
}

// row prints a figure that is settled.
func (f *figure) row(w io.Writer) {
	bar, verdict := "", ""
	if f.Met != nil {
		sign := "≤"
		if f.AtLeast {
			sign = "≥"
		}
		if bar = fmt.Sprintf("%s %.4g", sign, f.Bar); f.BarP99 > 0 {
			bar += fmt.Sprintf(", p99 %s %.4g", sign, f.BarP99)
		}
		if verdict = "met"; !*f.Met {
			verdict = "MISSED"
		}
	}
	fmt.Fprintf(w, "%s\t%d\t%.1f %s\t%.1f %s\t%s\t%s\n", f.Name, f.N, f.Median, f.Unit, f.P99, f.Unit, bar, verdict)
}

// settle draws the conclusions of the samples.
func (f *figure) settle() {
	sorted := slices.Sorted(slices.Values(f.Samples))
	f.N = len(sorted)
	if f.N == 0 {
		return
	}
	at := func(q float64) float64 { return sorted[min(f.N-1, int(q*float64(f.N)))] }
	f.Median, f.P99 = at(0.5), at(0.99)
	if f.AtLeast {
		f.P99 = at(0.01) // the slow end
	}
	if f.Bar == 0 {
		return
	}
	met := f.Median <= f.Bar && (f.BarP99 == 0 || f.P99 <= f.BarP99)
	if f.AtLeast {
		met = f.Median >= f.Bar
	}
	f.Met = &met
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:1], "")
}

// start restores a machine.
func (b *benchVM) start(ctx context.Context) (vm.VM, error) {
	b.made++
	s := b.size
	s.ID = fmt.Sprintf("bench-%d", b.made)
	m, err := b.provider.Start(ctx, s)
	var boot *vm.BootError
	if errors.As(err, &boot) {
		err = fmt.Errorf("%w; its console:\n%s", err, boot.Console)
	}
	return m, err
}
