package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/store"
)

const actRow = "trivial 3-step job, act, host mode"

const trivialWorkflow = `name: trivial
on: push
jobs:
  trivial:
    runs-on: ubuntu-latest
    steps:
      - run: echo one
      - run: echo two
      - run: echo three
`

func newBenchCmd() *cobra.Command {
	var b bench
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure this machine: jobs, webhooks, and act beside us",
		Long: `Measure, on this machine and in one run, what users wait for. Machines are noisy: compare the rows of one run.

act (go install github.com/nektos/act@latest) is measured beside us where it is in PATH or in Go's bin folder.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.OutOrStdout()
			return ours(b.run(cmd.Context()))
		},
	}
	cmd.Flags().IntVarP(&b.n, "runs", "n", 20, "measurements of each kind, after one that does not count")
	cmd.Flags().IntVar(&b.vms, "vm-runs", 10, "measurements with virtual machines; 0: none")
	cmd.Flags().IntVar(&b.hooks, "webhooks", 5000, "webhooks to be made durable")
	cmd.AddCommand(newBenchPlanCmd(), newBenchVMCmd(), newBenchRunnerCmd(), newBenchTransferCmd())
	return cmd
}

// bench is one call of `tgr bench`.
type bench struct {
	out    io.Writer
	n, vms int
	hooks  int
	rows   []benchRow
}

// coldEnv has machines booted, as if there were neither snapshot nor pool.
func coldEnv() []string { return []string{"TGR_VM_POOL=0"} }

// warmEnv has one machine wait. More would be made while the job runs that is measured.
func warmEnv() []string { return []string{"TGR_VM_MEMORY=512", "TGR_VM_POOL=1024", "TGR_LABELS="} }

// awaitLog waits until a server has logged a message n times.
func awaitLog(ctx context.Context, path, message string, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("the server did not log %q %d times within 2 minutes", message, n))
	defer cancel()
	for tick := time.Tick(10 * time.Millisecond); ; {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Count(b, []byte(`"`+message+`"`)) >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick:
		}
	}
}

type benchRow struct {
	name    string
	samples []time.Duration
}

func (b *bench) run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "tgr-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if b.vms > 0 {
		if err := ensureImage(ctx, b.out); err != nil {
			return err
		}
	}
	if err := b.trivialJob(ctx, dir); err != nil {
		return err
	}
	for _, kind := range []struct {
		name, isolation string
		env             []string
		n               int
	}{{"process", "process", nil, b.n}, {"container from the pool", "container", warmEnv(), b.containers()}, {"VM from the pool", "qemu", warmEnv(), b.vms}, {"VM cold", "qemu", coldEnv(), b.vms}} {
		if err := b.firstLine(ctx, kind.name, kind.isolation, kind.env, kind.n); err != nil {
			return err
		}
	}
	if err := b.print(); err != nil {
		return err
	}
	return b.webhooks(ctx, dir)
}

// containers is how often jobs in containers are measured: not at all where there can be none.
func (b *bench) containers() int {
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		fmt.Fprintln(b.out, "containers are NOT MEASURED: that needs root, and runc")
		return 0
	}
	return b.n
}

// benchRepo makes a repository with one commit of these files, by their paths.
func benchRepo(ctx context.Context, repo string, files map[string]string) error {
	for name, text := range files {
		path := filepath.Join(repo, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"},
		{"-c", "user.name=tgr", "-c", "user.email=tgr@localhost", "commit", "-q", "-m", "bench"}} {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = repo
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", args[0], err, out)
		}
	}
	return nil
}

// trivialJob times whole programs, in turn, on the same repository.
func (b *bench) trivialJob(ctx context.Context, dir string) error {
	repo := filepath.Join(dir, "trivial")
	if err := benchRepo(ctx, repo, map[string]string{workflowDir + "/trivial.yml": trivialWorkflow}); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ourCache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	programs := []struct {
		name  string
		argv  []string
		cache string
		env   []string
		n     int
	}{
		{"trivial 3-step job, tgr run, process", []string{self, "run", "-q", "--isolation", "process"}, ourCache, nil, b.n},
		{"trivial 3-step job, tgr run, container", []string{self, "run", "-q", "--isolation", "container"}, ourCache, nil, b.containers()},
		{"trivial 3-step job, tgr run, VM restored", []string{self, "run", "-q", "--isolation", "qemu"}, ourCache, nil, b.vms},
		{"trivial 3-step job, tgr run, VM cold", []string{self, "run", "-q", "--isolation", "qemu"}, ourCache, coldEnv(), b.vms},
		{actRow, []string{findAct(), "push", "-P", "ubuntu-latest=-self-hosted"}, filepath.Join(dir, "act-cache"), nil, b.n},
	}
	if findAct() == "" {
		fmt.Fprintln(b.out, "bench: act is not installed, so there is nothing to compare with: go install github.com/nektos/act@latest")
		programs[len(programs)-1].n = 0
	}
	rows := make([]benchRow, len(programs))
	for i := range b.n + 1 {
		for k, p := range programs {
			if i > p.n || p.n == 0 {
				continue
			}
			cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
			cmd.Dir = repo
			// act would ask which image it should use, and keep caches in the home folder.
			cmd.Env = append(append(os.Environ(), "XDG_CACHE_HOME="+p.cache, "XDG_CONFIG_HOME="+dir, "CI=true"), p.env...)
			began := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w:\n%s", p.name, err, out)
			}
			if i > 0 { // the first is the warm-up
				rows[k].samples = append(rows[k].samples, time.Since(began))
			}
		}
	}
	for k, p := range programs {
		rows[k].name = p.name
	}
	b.rows = append(b.rows, rows...)
	return nil
}

func findAct() string {
	if p, err := exec.LookPath("act"); err == nil {
		return p
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	p := filepath.Join(home, "go", "bin", "act")
	if _, err := os.Stat(p); err != nil {
		return ""
	}
	return p
}

// firstLine measures from the sending of a webhook to the first line that the job's first step prints, with a real
// server, a real repository and real sockets.
func (b *bench) firstLine(ctx context.Context, name, isolation string, env []string, n int) (err error) {
	if n == 0 {
		return nil
	}
	d := &demo{out: io.Discard, secret: tgr.NewToken(), isolation: isolation, env: env, jobs: map[tgr.JobID]*demoJob{}}
	if d.dir, err = os.MkdirTemp("", "tgr-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	if d.hub, err = githubtest.New(githubtest.Config{AppID: demoAppID}); err != nil {
		return err
	}
	defer d.hub.Close()
	stop, err := d.startServer(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	repo, err := d.hub.CreateRepo("acme/bench")
	if err != nil {
		return err
	}
	row := benchRow{name: "webhook to first log line, " + name}
	boots := benchRow{name: "machine asked for to agent answered, " + name}
	whole := benchRow{name: "trivial 3-step job on a server, " + name}
	before := githubtest.Zero
	for i := range n + 1 {
		sha, err := repo.Commit("main", fmt.Sprintf("commit %d", i), map[string]string{workflowDir + "/trivial.yml": trivialWorkflow, "n": fmt.Sprint(i)})
		if err != nil {
			return err
		}
		clear(d.jobs)
		if slices.Equal(env, warmEnv()) {
			if err := awaitLog(ctx, filepath.Join(d.dir, "serve.log"), "a machine waits", i+1); err != nil {
				return err
			}
		}
		if err := d.deliver(ctx, "push", repo.PushEvent("refs/heads/main", before, sha)); err != nil {
			return err
		}
		before = sha
		for _, j := range d.jobs {
			if j.job.Conclusion != tgr.Success || j.firstLine == 0 {
				return fmt.Errorf("job %d ended as %s: %s", j.job.ID, j.job.Conclusion, j.job.Reason)
			}
			if i > 0 {
				row.samples = append(row.samples, j.firstLine)
				boots.samples = append(boots.samples, j.boot)
				whole.samples = append(whole.samples, j.job.Finished.Sub(j.job.Started))
			}
		}
	}
	b.rows = append(b.rows, row, boots, whole)
	return nil
}

// webhooks measures how many webhooks a second are answered after they were made durable.
func (b *bench) webhooks(ctx context.Context, dir string) error {
	const clients = 32
	s, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, "bench.db")})
	if err != nil {
		return err
	}
	defer s.Close()
	secret := tgr.NewToken()
	hook, err := github.NewWebhookHandler(github.WebhookConfig{Secrets: [][]byte{[]byte(secret)}, Accept: s.Accept,
		Rate: 1e6, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: hook, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Close()
		<-served
	}()
	hub, err := githubtest.New(githubtest.Config{})
	if err != nil {
		return err
	}
	defer hub.Close()
	repo, err := hub.CreateRepo("acme/bench")
	if err != nil {
		return err
	}
	sha, err := repo.Commit("main", "one", map[string]string{"a": "b"})
	if err != nil {
		return err
	}
	// One payload, made different for each delivery: making it takes git longer than making it durable takes us.
	const mark = "refs/heads/branch-000000"
	payload := repo.PushEvent(mark, githubtest.Zero, sha)
	var next atomic.Int64
	var wg sync.WaitGroup
	took := make([][]time.Duration, clients)
	errs := make([]error, clients)
	began := time.Now()
	for c := range clients {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.hooks) && ctx.Err() == nil; i = next.Add(1) {
				body := bytes.ReplaceAll(payload, []byte(mark), fmt.Appendf(nil, "refs/heads/branch-%06d", i))
				sent := time.Now()
				a, err := githubtest.Deliver(ctx, "http://"+l.Addr().String(), "push", body, secret)
				if err == nil && a.Status/100 != 2 {
					err = fmt.Errorf("status %d: %s", a.Status, a.Body)
				}
				if err != nil {
					errs[c] = err
					return
				}
				took[c] = append(took[c], time.Since(sent))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	elapsed := time.Since(began)
	all := slices.Concat(took...)
	fmt.Fprintf(b.out, "\nwebhooks made durable: %.0f a second (n=%d, %d senders; answer after %s median, %s p99; senders and server share this machine)\n",
		float64(len(all))/elapsed.Seconds(), len(all), clients, millis(quantile(all, 0.5)), millis(quantile(all, 0.99)))
	return nil
}

func (b *bench) print() error {
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tn\tmedian\tp99\tratio to act")
	var act time.Duration
	for _, r := range b.rows {
		if r.name == actRow && len(r.samples) > 0 {
			act = quantile(r.samples, 0.5)
		}
	}
	for _, r := range b.rows {
		if len(r.samples) == 0 {
			continue
		}
		ratio := ""
		if act > 0 && strings.HasPrefix(r.name, "trivial") {
			ratio = fmt.Sprintf("%.2f", float64(quantile(r.samples, 0.5))/float64(act))
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", r.name, len(r.samples), millis(quantile(r.samples, 0.5)), millis(quantile(r.samples, 0.99)), ratio)
	}
	return w.Flush()
}

// quantile is the value below which a share q of the samples lies, by the nearest rank.
func quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Clone(samples)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
