package github

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/terraphim/tgr"
)

// git is one call of the git binary. What git reads is hostile: it gets no configuration but ours, no hooks, no
// credential helper, no terminal, no transport unless it is asked for, and a bounded time.
type git struct {
	dir   string // --git-dir; "": none
	work  string // working tree; "": none
	stdin io.Reader
	env   []string    // beyond gitEnv's
	conf  [][2]string // configuration beyond gitConf's; never in argv, so that a token may be among it
	limit int64       // bytes of output; 0: 64 MiB
	hold  *os.File    // a lock that is held for as long as the process lives, even if ours dies
}

const (
	gitOutput = 64 << 20
	gitKill   = 5 * time.Second // how long a git that was asked to end may take
)

// gitConf is the configuration of every call.
func gitConf() [][2]string {
	return [][2]string{
		{"core.hooksPath", "/dev/null"},
		{"core.fsmonitor", "false"},
		{"core.askPass", ""},
		{"credential.helper", ""},
		{"safe.directory", "*"}, // the cache may belong to another user of ours, and has no configuration of its own
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
		{"fetch.unpackLimit", "1"}, // packs appear whole: a fetch that was killed leaves no commit without its tree
		{"transfer.unpackLimit", "1"},
		{"submodule.recurse", "false"},
		{"advice.detachedHead", "false"},
		{"init.defaultBranch", "main"},
		{"http.lowSpeedLimit", "1000"},
		{"http.lowSpeedTime", "30"},
		{"protocol.version", "2"},
		{"protocol.allow", "never"},
		{"core.packedGitLimit", "256m"},
		{"core.bigFileThreshold", "64m"},
		{"pack.threads", "2"},
	}
}

// gitEnv is the environment of every call, with the configuration in it.
func gitEnv(conf [][2]string) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=/nonexistent",
		"LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ASKPASS=/bin/false",
		"SSH_ASKPASS=/bin/false",
		"GIT_OPTIONAL_LOCKS=0",
		"GIT_LFS_SKIP_SMUDGE=1",
		"GIT_NO_REPLACE_OBJECTS=1",
		"GIT_CONFIG_COUNT=" + strconv.Itoa(len(conf)),
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for i, kv := range conf {
		n := strconv.Itoa(i)
		env = append(env, "GIT_CONFIG_KEY_"+n+"="+kv[0], "GIT_CONFIG_VALUE_"+n+"="+kv[1])
	}
	return env
}

// gitError is a git that failed: what it said, without the secrets of its configuration.
type gitError struct {
	verb   string
	stderr string
	err    error
}

// Error is git's last words.
func (e *gitError) Error() string {
	if e.stderr == "" {
		return fmt.Sprintf("git %s: %v", e.verb, e.err)
	}
	return fmt.Sprintf("git %s: %s", e.verb, e.stderr)
}

// Unwrap returns the cause.
func (e *gitError) Unwrap() error { return e.err }

// run calls git and returns what it printed.
func (g git) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd, errs := g.command(ctx, args...)
	out := &limitedBuffer{max: g.limit}
	if out.max == 0 {
		out.max = gitOutput
	}
	cmd.Stdout = out
	err := cmd.Run()
	if out.over {
		return nil, &gitError{verb: args[0], stderr: fmt.Sprintf("more than %d bytes of output", out.max), err: errTooMuch}
	}
	if err != nil {
		return nil, g.failure(ctx, args[0], errs, err)
	}
	return out.buf.Bytes(), nil
}

// command prepares a call; errs gets the beginning of its standard error.
func (g git) command(ctx context.Context, args ...string) (cmd *exec.Cmd, errs *limitedBuffer) {
	if g.dir != "" {
		args = append([]string{"--git-dir=" + g.dir}, args...)
	}
	cmd = exec.CommandContext(ctx, "git", args...)
	cmd.Env = append(gitEnv(append(gitConf(), g.conf...)), g.env...)
	if g.work != "" {
		cmd.Env = append(cmd.Env, "GIT_WORK_TREE="+g.work)
		cmd.Dir = g.work
	}
	cmd.Stdin = g.stdin
	if g.hold != nil {
		cmd.ExtraFiles = []*os.File{g.hold}
	}
	errs = &limitedBuffer{max: 16 << 10, drop: true}
	cmd.Stderr = errs
	// git starts helpers of its own; the whole group goes when the context ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = gitKill
	return cmd, errs
}

func (g git) failure(ctx context.Context, verb string, errs *limitedBuffer, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	said := errs.buf.String()
	for _, kv := range g.conf {
		if strings.HasSuffix(kv[0], ".extraheader") && kv[1] != "" {
			said = strings.ReplaceAll(said, kv[1], "***")
		}
	}
	var lines []string
	for line := range strings.SplitSeq(said, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "hint:") && !strings.HasPrefix(line, "warning:") {
			lines = append(lines, line)
		}
	}
	return &gitError{verb: verb, stderr: clip(strings.Join(lines, "; "), 1000), err: err}
}

// errTooMuch is output beyond a limit.
var errTooMuch = errors.New("too much output")

// limitedBuffer keeps the first max bytes. Beyond them it either drops what comes, or fails the writer.
type limitedBuffer struct {
	buf  bytes.Buffer
	max  int64
	drop bool
	over bool
}

// Write keeps what fits.
func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := b.max - int64(b.buf.Len()); int64(len(p)) > room {
		b.over = !b.drop
		if !b.drop {
			return 0, errTooMuch
		}
		b.buf.Write(p[:room])
		return len(p), nil
	}
	return b.buf.Write(p)
}

// codeOfGit derives what kind of failure git's words tell of.
func codeOfGit(err error) tgr.Code {
	var g *gitError
	switch {
	case errors.Is(err, errTooMuch):
		return tgr.Limit
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return tgr.Unavailable
	case !errors.As(err, &g):
		return tgr.Internal
	}
	said := strings.ToLower(g.stderr)
	for _, rule := range []struct {
		code  tgr.Code
		words []string
	}{
		{tgr.Unauthorized, []string{"authentication failed", "could not read username", "could not read password", "error: 401", "error: 403"}},
		{tgr.NotFound, []string{"not our ref", "couldn't find remote ref", "could not find remote ref", "unadvertised object",
			"repository not found", "does not appear to be a git repository", "error: 404", "' not found", "does not exist"}},
		{tgr.Limit, []string{"maximum allowed size"}},
	} {
		for _, w := range rule.words {
			if strings.Contains(said, w) {
				return rule.code
			}
		}
	}
	return tgr.Unavailable
}

// tokenConf sends a token with requests to url and nowhere else; it lives in the environment of one process.
func tokenConf(url, token string) [][2]string {
	if token == "" || strings.HasPrefix(url, "file:") {
		return nil
	}
	return [][2]string{{"http." + url + ".extraheader", tokenHeader(token)}}
}

func tokenHeader(token string) string {
	return "AUTHORIZATION: basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+token))
}
