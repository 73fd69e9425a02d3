package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// transferAction saves and fetches a cache with the first protocol, which act's server speaks too.
//
//go:embed benchtransfer.js
var transferAction string

const transferWorkflow = `on: push
jobs:
  t:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: ./transfer
        with: %s
`

// restoresEach is how often a job restores what it has saved.
const restoresEach = 6

// inJobs measures an action in a job of ours. It uses the server of its own job and that of a job of act's by turns: what
// else goes on on the machine, and in the client, meets both.
func (b *transferBench) inJobs(ctx context.Context, dir string) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	j := transferJob{dir: filepath.Join(dir, "job"), argv: []string{self, "run", "--isolation", "process"}, with: map[string]string{
		"mib": strconv.Itoa(b.mib), "rounds": strconv.Itoa(b.rounds), "restores": strconv.Itoa(restoresEach), "reserved": dir + "/reserved-"}}
	act := findAct()
	if act != "" {
		address, end, failed := lendServer(ctx, dir, act)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, end()) }()
		if err := b.reserve(dir + "/reserved-other"); err != nil {
			return err
		}
		j.with["other"] = address
	} else {
		fmt.Fprintln(b.out, "act is not installed, so there is nothing to compare with: go install github.com/nektos/act@latest")
	}
	cmd, err := j.command(ctx)
	if err := errors.Join(err, b.reserve(dir+"/reserved-own")); err != nil {
		return err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("tgr run: %w:\n%s", err, out)
	}
	got := map[string][]time.Duration{}
	for _, m := range transferLine.FindAllStringSubmatch(string(out), -1) {
		if us, err := strconv.Atoi(m[3]); err == nil && m[1] == "" {
			got[m[2]] = append(got[m[2]], time.Duration(us)*time.Microsecond)
		}
	}
	names := []string{"an action of tgr run, process"}
	if act != "" {
		names = append(names, "the same action at act's server")
	}
	for i, server := range []string{"own", "other"}[:len(names)] {
		t := transfers{saves: got[server+" save"], restores: got[server+" restore"]}
		if len(t.saves) != b.rounds || len(t.restores) != b.rounds*restoresEach {
			return fmt.Errorf("%s: it saved %d times and restored %d times, in %d rounds:\n%s", names[i], len(t.saves), len(t.restores), b.rounds, out)
		}
		b.row(names[i], t)
	}
	if act != "" {
		b.beside = fmt.Sprintf("\nby turns, pair by pair, in the median: saved %.2f times as fast as at act's server (n=%d), restored %.2f times (n=%d)\n",
			medianRatio(got["other save"], got["own save"]), b.rounds, medianRatio(got["other restore"], got["own restore"]), b.rounds*restoresEach)
	}
	return nil
}

var transferLine = regexp.MustCompile(`(first )?((?:own|other) (?:save|restore)) (\d+) us`)

// medianRatio is the median of a/b, pair by pair: both have as many, and one at least.
func medianRatio(a, b []time.Duration) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i].Seconds() / b[i].Seconds()
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// transferJob is a job that runs the action.
type transferJob struct {
	dir  string // of its own, made
	argv []string
	with map[string]string // the action's inputs
}

// command makes the job's repository, and the command that runs it.
func (j *transferJob) command(ctx context.Context) (*exec.Cmd, error) {
	repo := filepath.Join(j.dir, "repo")
	with, err := json.Marshal(j.with) // YAML too
	if err != nil {
		return nil, err
	}
	inputs := "{" + strings.Join(slices.Sorted(maps.Keys(j.with)), ": {}, ") + ": {}}"
	err = benchRepo(ctx, repo, map[string]string{
		workflowDir + "/t.yml": fmt.Sprintf(transferWorkflow, with), "transfer/index.js": transferAction,
		"transfer/action.yml": "name: transfer\ninputs: " + inputs + "\nruns: {using: node20, main: index.js}\n",
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, j.argv[0], j.argv[1:]...)
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "TGR_DATA_DIR="+filepath.Join(j.dir, "data"), "XDG_CACHE_HOME="+filepath.Join(j.dir, "cache"), "XDG_CONFIG_HOME="+j.dir, "CI=true")
	return cmd, nil
}

// lendServer has a job of act's lend its cache server until end is called. address is the file that says where it is.
func lendServer(ctx context.Context, dir, act string) (address string, end func() error, err error) {
	address = filepath.Join(dir, "lent")
	pipe := filepath.Join(dir, "end")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		return "", nil, err
	}
	hold, err := os.OpenFile(pipe, os.O_RDWR, 0) // in both directions, so that nobody waits for another to open his end
	if err != nil {
		return "", nil, err
	}
	j := transferJob{dir: filepath.Join(dir, "act"), argv: []string{act, "push", "-P", "ubuntu-latest=-self-hosted"}, with: map[string]string{"lend": address, "end": pipe}}
	cmd, err := j.command(ctx)
	if err != nil {
		return "", nil, errors.Join(err, hold.Close())
	}
	said := &transcript{lent: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		return "", nil, errors.Join(err, hold.Close())
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	end = func() error {
		hold.Close()
		if err := <-ended; err != nil {
			return fmt.Errorf("act: %w:\n%s", err, said.text.Bytes())
		}
		return nil
	}
	select {
	case <-said.lent:
		return address, end, nil
	case err := <-ended:
		return "", nil, errors.Join(fmt.Errorf("act ended and has lent nothing: %w:\n%s", err, said.text.Bytes()), hold.Close())
	}
}

// transcript is what a program prints; lent is closed when the action has said that it lends its server.
type transcript struct {
	text bytes.Buffer
	lent chan struct{}
	once sync.Once
}

// Write keeps what is printed.
func (t *transcript) Write(p []byte) (int, error) {
	t.text.Write(p)
	if bytes.Contains(t.text.Bytes(), []byte("| lent\n")) {
		t.once.Do(func() { close(t.lent) })
	}
	return len(p), nil
}

// reserve makes a file of the size of a transfer for each round, which the action removes just before it, so that there is
// memory for the transfer that was touched before. The number of the round follows the name.
func (b *transferBench) reserve(name string) error {
	for i := range b.rounds + 1 {
		if err := os.WriteFile(name+strconv.Itoa(i), make([]byte, b.mib<<20), 0o600); err != nil {
			return err
		}
	}
	unix.Sync()
	return nil
}
