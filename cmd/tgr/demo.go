package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"embed"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

//go:embed all:demo
var demoFiles embed.FS

const (
	demoRepo  = "acme/widgets"
	demoAppID = 4711
)

func newDemoCmd() *cobra.Command {
	var isolation string
	cmd := &cobra.Command{
		Use: "demo", Short: "Watch a push and a pull request become jobs, on this machine alone",
		Long: `Start a stand-in for GitHub and a server on loopback, push to a real git repository, send the signed
webhooks, and show what becomes of them: jobs with their logs, statuses, check runs and a comment.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := &demo{out: cmd.OutOrStdout(), secret: tgr.NewToken(), isolation: isolation, jobs: map[tgr.JobID]*demoJob{}}
			return ours(d.run(cmd.Context()))
		},
	}
	cmd.Flags().StringVar(&isolation, "isolation", "auto", isolationHelp)
	return cmd
}

// demo is one call of `tgr demo`.
type demo struct {
	out       io.Writer
	secret    string
	isolation string
	env       []string // more of the server's environment
	dir       string
	hub       *githubtest.Server
	client    *web.Client
	url       string

	mu   sync.Mutex // guards out and jobs
	jobs map[tgr.JobID]*demoJob
}

// demoJob is what the summary says of a job.
type demoJob struct {
	run       tgr.Run
	job       tgr.Job
	boot      time.Duration
	firstLine time.Duration // from the webhook to the first line that a step printed
}

func (d *demo) run(ctx context.Context) (err error) {
	began := time.Now()
	if d.isolation != "process" {
		if err := ensureImage(ctx, d.out); err != nil {
			return err
		}
	}
	if d.dir, err = os.MkdirTemp("", "tgr-demo-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			d.showServerLog()
		}
		err = errors.Join(err, os.RemoveAll(d.dir))
	}()
	if d.hub, err = githubtest.New(githubtest.Config{AppID: demoAppID}); err != nil {
		return err
	}
	defer d.hub.Close()
	d.say("GitHub's stand-in listens at %s", d.hub.URL)
	stop, err := d.startServer(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()

	repo, err := d.createRepo()
	if err != nil {
		return err
	}
	if err := d.push(ctx, repo); err != nil {
		return err
	}
	if err := d.pullRequest(ctx, repo); err != nil {
		return err
	}
	if err := d.awaitReports(ctx, repo); err != nil {
		return err
	}
	return d.summary(repo, time.Since(began))
}

func (d *demo) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, "==> "+format+"\n", args...)
}

// startServer starts `tgr serve` as a process of its own, as a user would, and waits until it listens.
func (d *demo) startServer(ctx context.Context) (stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	key, err := d.appKey()
	if err != nil {
		return nil, err
	}
	logFile, err := os.Create(filepath.Join(d.dir, "serve.log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "serve", "--port", "0", "--log-format", "json", "--data-dir", filepath.Join(d.dir, "data"),
		"--isolation", d.isolation, "--github-api-url", strings.TrimSuffix(d.hub.API(), "/"), "--github-server-url", d.hub.URL,
		"--github-app-id", fmt.Sprint(demoAppID), "--github-app-key-file", key)
	cmd.Env = append(append(os.Environ(), "GITHUB_WEBHOOK_SECRET="+d.secret), d.env...)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	listening := make(chan string, 1)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		defer logFile.Close()
		defer close(listening)
		lines := bufio.NewScanner(pipe)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			fmt.Fprintf(logFile, "%s\n", lines.Bytes())
			var l struct{ Msg, URL string }
			if json.Unmarshal(lines.Bytes(), &l) == nil && l.Msg == "listening" {
				listening <- l.URL
			}
		}
	}()
	stop = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		<-copied
		return cmd.Wait()
	}
	select {
	case d.url = <-listening:
	case <-ctx.Done():
	}
	if d.url == "" {
		return nil, errors.Join(errors.New("the server did not start"), stop())
	}
	d.say("tgr serve listens at %s (open it in a browser while this runs)", d.url)
	d.client, err = web.NewClient(d.url, "")
	return stop, err
}

// showServerLog shows what the server said last.
func (d *demo) showServerLog() {
	log, err := os.ReadFile(filepath.Join(d.dir, "serve.log"))
	if err != nil {
		return // it was not started
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	d.say("the server's log ended with:\n%s", strings.Join(lines[max(0, len(lines)-20):], "\n"))
}

// appKey makes the key of the GitHub App that the server reports as.
func (d *demo) appKey() (string, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", err
	}
	path := filepath.Join(d.dir, "app.pem")
	return path, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600)
}

func (d *demo) createRepo() (*githubtest.Repo, error) {
	repo, err := d.hub.CreateRepo(demoRepo)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	err = fs.WalkDir(demoFiles, "demo", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := demoFiles.ReadFile(path)
		files[strings.TrimPrefix(path, "demo/")] = string(data)
		return err
	})
	if err != nil {
		return nil, err
	}
	_, err = repo.Commit("main", "Widgets", files)
	return repo, err
}

func (d *demo) push(ctx context.Context, repo *githubtest.Repo) error {
	sha := repo.SHA("main")
	d.say("git push: %s is %s; its webhook is sent, signed", repo.FullName, sha[:12])
	return d.deliver(ctx, "push", repo.PushEvent("refs/heads/main", githubtest.Zero, sha))
}

func (d *demo) pullRequest(ctx context.Context, repo *githubtest.Repo) error {
	if err := repo.Branch("faster", repo.SHA("main")); err != nil {
		return err
	}
	if _, err := repo.Commit("faster", "Make widgets faster", map[string]string{"src/widgets.py": "area = lambda width, height: width * height\n"}); err != nil {
		return err
	}
	pull, err := repo.OpenPull(nil, "faster", "main")
	if err != nil {
		return err
	}
	d.say("pull request #%d from %s; its webhook is sent, signed", pull.Number, pull.HeadRef)
	return d.deliver(ctx, "pull_request", pull.Event("opened"))
}

// deliver sends a webhook and shows its runs until they are completed.
func (d *demo) deliver(ctx context.Context, event string, payload []byte) error {
	sent := time.Now()
	answer, err := githubtest.Deliver(ctx, d.url+"/webhook", event, payload, d.secret)
	if err != nil {
		return err
	}
	d.say("the webhook was answered with %d after %d ms: %s", answer.Status, time.Since(sent).Milliseconds(), strings.TrimSpace(string(answer.Body)))
	if answer.Status >= 300 {
		return fmt.Errorf("the server refused the %s webhook with status %d", event, answer.Status)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for tick := time.Tick(100 * time.Millisecond); ; {
		list, err := d.client.Runs(ctx, web.Filter{Delivery: tgr.DeliveryID(answer.Delivery)})
		if err != nil {
			return err
		}
		open := len(list.Runs) == 0
		for _, run := range list.Runs {
			open = open || !run.Status.Done()
			if err := d.show(ctx, &wg, run, sent); err != nil {
				return err
			}
		}
		if !open {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
		}
	}
}

// show follows the logs of the jobs of a run that are new, and notes how they stand.
func (d *demo) show(ctx context.Context, wg *sync.WaitGroup, run tgr.Run, sent time.Time) error {
	detail, err := d.client.Run(ctx, run.ID, 0)
	if err != nil {
		return err
	}
	for _, j := range detail.Jobs {
		if j.Kind != tgr.WorkJob || j.Status == tgr.Pending {
			continue
		}
		d.mu.Lock()
		known := d.jobs[j.ID]
		if known == nil {
			known = &demoJob{}
			d.jobs[j.ID] = known
			wg.Go(func() { d.follow(ctx, j, known, sent) })
		}
		known.run, known.job = detail.Run, j
		d.mu.Unlock()
	}
	return nil
}

func (d *demo) follow(ctx context.Context, j tgr.Job, known *demoJob, sent time.Time) {
	_, err := d.client.Follow(ctx, j.ID, 0, func(l web.LogLine) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if boot, ok := dispatch.BootOf(l.Text); ok {
			known.boot = boot
		}
		if known.firstLine == 0 && l.Step > 0 {
			known.firstLine = l.Time.Sub(sent)
		}
		if text, ok := readable(l.Text); ok {
			fmt.Fprintf(d.out, "[%s] %s\n", printable(j.Name), text)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		d.say("the log of %s broke off: %v", j.Name, err)
	}
}

// awaitReports waits until the server has told GitHub everything.
func (d *demo) awaitReports(ctx context.Context, repo *githubtest.Repo) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for tick := time.Tick(50 * time.Millisecond); ; {
		settled := len(d.hub.CheckRuns(repo.FullName)) == len(d.jobs) && len(d.hub.Comments(repo.FullName)) > 0 &&
			!slices.ContainsFunc(d.hub.CheckRuns(repo.FullName), func(c githubtest.CheckRun) bool { return c.Status != "completed" }) &&
			len(latest(d.hub.Statuses(repo.FullName))) == len(d.jobs)
		for _, s := range latest(d.hub.Statuses(repo.FullName)) {
			settled = settled && s.State != "pending"
		}
		if settled {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server did not report everything to GitHub within 30 s: of %d jobs there are %d check runs, %d statuses and %d comments",
				len(d.jobs), len(d.hub.CheckRuns(repo.FullName)), len(latest(d.hub.Statuses(repo.FullName))), len(d.hub.Comments(repo.FullName)))
		case <-tick:
		}
	}
}

// latest is the last status of each context.
func latest(all []githubtest.Status) map[string]githubtest.Status {
	last := map[string]githubtest.Status{}
	for _, s := range all {
		last[s.SHA+" "+s.Context] = s
	}
	return last
}

// summary shows what happened; its error is the demo's exit status.
func (d *demo) summary(repo *githubtest.Repo, took time.Duration) error {
	d.say("what GitHub was told")
	for _, s := range latest(d.hub.Statuses(repo.FullName)) {
		fmt.Fprintf(d.out, "    status   %s  %-8s %s: %s\n", s.SHA[:12], s.State, s.Context, s.Description)
	}
	for _, c := range d.hub.CheckRuns(repo.FullName) {
		fmt.Fprintf(d.out, "    check    %s  %-8s %s\n", c.HeadSHA[:12], c.Conclusion, c.Name)
	}
	for _, c := range d.hub.Comments(repo.FullName) {
		fmt.Fprintf(d.out, "    comment  on pull request #%d\n", c.Number)
		for line := range strings.Lines(strings.TrimSpace(c.Body)) {
			fmt.Fprintf(d.out, "      | %s\n", strings.TrimRight(line, "\n"))
		}
	}
	d.say("summary")
	w := tabwriter.NewWriter(d.out, 4, 0, 2, ' ', 0)
	fmt.Fprintln(w, "    job\tresult\tisolation\tkernel in it\tboot\twebhook to first line\tjob")
	failed := len(d.jobs) == 0
	var ids []tgr.JobID
	for id := range d.jobs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		j := d.jobs[id]
		failed = failed || j.job.Conclusion != tgr.Success
		fmt.Fprintf(w, "    %s / %s (%s)\t%s\t%s\t%s\t%s\t%s\t%s\n", j.run.WorkflowName, j.job.Name, j.run.Event.Name, j.job.Conclusion,
			j.job.Isolation, j.job.Outputs["kernel"], seconds(j.boot), seconds(j.firstLine), seconds(j.job.Finished.Sub(j.job.Started)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "    kernel of this host: %s; in all %s\n", hostKernel(), seconds(took))
	if failed {
		return exitError{exitFailed, errors.New("the demo failed")}
	}
	return nil
}

func hostKernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
