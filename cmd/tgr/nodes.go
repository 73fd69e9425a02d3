package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/terraphim/tgr/image"
)

// hostNodes are the node runtimes of jobs that run on the host: the host's own, if it is not older than what an action
// asks for, or that of the images.
type hostNodes struct {
	log   *slog.Logger
	own   func() (path string, major int) // major is 0 if there is none
	fetch image.Nodes
}

// newHostNodes does no I/O.
func newHostNodes(log *slog.Logger) *hostNodes {
	n := &hostNodes{log: log}
	n.own = sync.OnceValues(ownNode)
	if cache, err := os.UserCacheDir(); err == nil {
		n.fetch.Dir = filepath.Join(cache, "tgr", "node")
	}
	return n
}

// ownNode finds the host's node and asks it for its version, such as v20.1.0.
func ownNode() (path string, major int) {
	path, err := exec.LookPath("node")
	if err != nil {
		return "", 0
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return "", 0
	}
	digits, _, _ := strings.Cut(strings.TrimPrefix(string(out), "v"), ".")
	major, _ = strconv.Atoi(digits)
	return path, major
}

// path is a runner.Config.Node.
func (n *hostNodes) path(ctx context.Context, name string) (string, error) {
	wanted, err := strconv.Atoi(strings.TrimPrefix(name, "node"))
	if err != nil {
		return "", fmt.Errorf("runtime %q: %w", name, fs.ErrNotExist)
	}
	if path, major := n.own(); major >= max(wanted, 1) {
		return path, nil
	}
	if n.fetch.Dir == "" {
		return "", errors.New("no folder to keep it in: neither $XDG_CACHE_HOME nor $HOME are defined")
	}
	path, err := n.fetch.Path(ctx, name)
	if err == nil {
		n.log.Info("node runtime", "name", name, "path", path)
	}
	return path, err
}

// allNodes are the runtimes of the images' names, as far as they can be had.
func allNodes(ctx context.Context, of func(context.Context, string) (string, error), log *slog.Logger) map[string]string {
	all := map[string]string{}
	for _, name := range []string{"node20", "node24"} {
		path, err := of(ctx, name)
		if err != nil {
			log.Warn("actions cannot run on "+name, "error", err)
			continue
		}
		all[name] = path
	}
	return all
}
