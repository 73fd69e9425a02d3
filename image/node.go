package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/terraphim/tgr/vm"
)

// Nodes is a folder of Node runtimes for jobs that run outside of any image: the same as in the images, each fetched
// when it is first asked for. It is safe for concurrent use, also by several processes.
type Nodes struct {
	Dir      string
	Registry string   // npm registry; "": what npm is configured to use, else registry.npmjs.org
	Progress Progress // nil: nothing is told
}

// Path returns the program of the runtime that actions call by a name: "node20", "node24". The error wraps fs.ErrNotExist
// if there is none of that name.
func (n Nodes) Path(ctx context.Context, name string) (string, error) {
	p, ok := nodePackage(name)
	if !ok {
		return "", fmt.Errorf("runtime %q: %w", name, fs.ErrNotExist)
	}
	root := filepath.Join(n.Dir, name+"-"+p.Version)
	program := filepath.Join(root, "bin", "node")
	if isFile(program) {
		return program, nil
	}
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := vm.LockFile(ctx, root+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if isFile(program) { // by now
		return program, nil
	}
	partial := root + ".partial" // ours while we have the lock; of one that was killed, if it is there
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	defer os.RemoveAll(partial)
	if err := n.install(ctx, p, partial); err != nil {
		return "", err
	}
	if err := os.RemoveAll(root); err != nil {
		return "", err
	}
	return program, os.Rename(partial, root)
}

// nodePackage is the package of a runtime.
func nodePackage(name string) (NPM, bool) {
	for _, p := range nodePackages() {
		if p.Dir == "opt/"+name+"/bin" {
			return p, true
		}
	}
	return NPM{}, false
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// install puts the files of a package into dir/bin.
func (n Nodes) install(ctx context.Context, p NPM, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return err
	}
	registry := n.Registry
	if registry == "" {
		registry = npmRegistry(ctx)
	}
	tgz := filepath.Join(dir, "package.tgz")
	if err := p.fetch(ctx, registry, tgz, n.Progress); err != nil {
		return err
	}
	f, err := os.Open(tgz)
	if err != nil {
		return err
	}
	defer f.Close()
	err = p.unpack(f, func(name string, mode, _ int64, r io.Reader) error {
		path := filepath.Join(dir, "bin", strings.TrimPrefix(name, p.Dir+"/"))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(mode))
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		return errors.Join(err, out.Sync(), out.Close())
	})
	return errors.Join(err, os.Remove(tgz))
}
