package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// rootImage is the file that buildRoot leaves.
const rootImage = "root.ext4"

// The user that jobs run as.
const (
	userName = "runner"
	userID   = 1001
)

// rootFiles are the files that every image has in the place of its own.
func rootFiles() []rootFile {
	return []rootFile{
		{"etc/hostname", 0o644, "tgr\n"},
		{"etc/hosts", 0o644, "127.0.0.1 localhost tgr\n::1 localhost ip6-localhost ip6-loopback\n"},
		{"etc/sudoers.d/runner", 0o440, "runner ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:runner !requiretty, env_keep += \"CI GITHUB_* RUNNER_*\"\n"},
	}
}

type rootFile struct {
	Name string
	Mode int64
	Text string
}

// files are all files that are put over those of the packages or layers.
func (b BuildConfig) files() []rootFile {
	files := rootFiles()
	if b.From == "" {
		files = append(files, debianFiles()...)
	}
	if b.Full {
		files = append(files, engineFiles()...)
	}
	return files
}

// links are symbolic links: name, target.
func (b BuildConfig) links() [][2]string {
	links := [][2]string{}
	for _, node := range []string{"node20", "node24"} {
		for _, bin := range []string{"npm", "npx"} {
			links = append(links, [2]string{"opt/" + node + "/bin/" + bin, "../lib/node_modules/npm/bin/" + bin + "-cli.js"})
		}
	}
	if b.From != "" { // it may have a node of its own
		return links
	}
	for _, bin := range []string{"node", "npm", "npx"} {
		links = append(links, [2]string{"usr/local/bin/" + bin, "/opt/node20/bin/" + bin})
	}
	return links
}

// recipe is the hash of everything that says how a root filesystem is built: the same recipe gives an image of the same
// kind, though of the packages' versions, or the image that a name stands for, of its day.
func (b BuildConfig) recipe() string {
	const layout = 2 // of what tidy and the tree make
	in := []any{layout, b.From, nodePackages(), b.files(), b.links()}
	if b.From == "" {
		in = append(in, suite, b.Mirror, b.packages(), dpkgOptions())
	}
	h := sha256.New()
	json.NewEncoder(h).Encode(in)
	return hex.EncodeToString(h.Sum(nil))
}

// buildRoot makes the root filesystem as the file rootImage in the folder work.
func (b BuildConfig) buildRoot(ctx context.Context, work string) (r Root, err error) {
	r = Root{Recipe: b.recipe(), Nodes: nodePackages()}
	t, err := newTree(work)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if b.From != "" {
		err = b.ociRoot(ctx, t, &r)
	} else {
		err = b.debianRoot(ctx, work, t, &r)
	}
	if err != nil {
		return r, err
	}
	if err := b.addExtra(ctx, work, t); err != nil {
		return r, err
	}
	if err := t.tidy(); err != nil {
		return r, err
	}
	if b.Progress != nil {
		b.Progress("make the file system", 0, 0)
	}
	image := filepath.Join(work, rootImage)
	if err := t.writeExt4(image); err != nil {
		return r, err
	}
	r.File, err = hashFile(ctx, image, "hash the root filesystem", b.Progress)
	return r, err
}

// addExtra fetches the Node runtimes and puts everything of ours over the packages or layers, as one layer.
func (b BuildConfig) addExtra(ctx context.Context, work string, t *tree) error {
	path := filepath.Join(work, "extra.tar")
	if err := b.writeExtra(ctx, work, path); err != nil {
		return err
	}
	return applyFile(ctx, t, path)
}

// applyFile applies an archive and deletes it.
func applyFile(ctx context.Context, t *tree, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.apply(ctxReader{ctx, bufio.NewReaderSize(f, 1<<20)}); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return os.Remove(path)
}

func (b BuildConfig) writeExtra(ctx context.Context, work, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := newRootTar(buf)
	for i, p := range nodePackages() {
		tgz := filepath.Join(work, fmt.Sprintf("npm%d.tgz", i))
		if err := p.fetch(ctx, b.Registry, tgz, b.Progress); err != nil {
			return err
		}
		if err := unpackFile(p, w, tgz); err != nil {
			return err
		}
	}
	for _, file := range b.files() {
		if err := w.text(file.Name, file.Mode, file.Text); err != nil {
			return err
		}
	}
	for _, l := range b.links() {
		if err := w.link(l[0], l[1]); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), buf.Flush(), f.Close())
}

func unpackFile(p NPM, w *rootTar, tgz string) error {
	f, err := os.Open(tgz)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.unpack(f, w.copy); err != nil {
		return err
	}
	return os.Remove(tgz)
}

// tidy adds what a machine needs and a root filesystem may lack, and drops what machines must not have in common.
func (t *tree) tidy() error {
	t.layer++
	for _, dir := range []string{"dev", "proc", "sys", "run", "mnt", "etc", "var", "home", "opt"} {
		if err := t.folder(dir, 0o755, 0); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		if err := t.folder(dir, 0o1777, 0); err != nil {
			return err
		}
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "var/log"} { // leftovers of how the packages or layers were made
		t.clear(dir, func(string) bool { return true })
	}
	t.clear("etc/ssh", func(base string) bool { return strings.HasPrefix(base, "ssh_host_") })
	for _, file := range []string{".dockerenv", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id", "etc/resolv.conf", "etc/machine-id"} {
		t.remove(file)
	}
	for _, file := range []string{"etc/resolv.conf", "etc/machine-id"} { // the agent writes them
		if err := t.text(file, 0o644, ""); err != nil {
			return err
		}
	}
	return t.addUser()
}

// clear removes files of a folder.
func (t *tree) clear(dir string, gone func(base string) bool) {
	n, err := t.dir(strings.Split(dir, "/"), false)
	if err != nil {
		return
	}
	for base := range n.children {
		if gone(base) {
			delete(n.children, base)
		}
	}
}

// addUser adds the user that jobs run as, unless there is one of that name.
func (t *tree) addUser() error {
	shell := "/bin/sh"
	if _, ok, err := t.read("bin/bash", 1<<30); ok && err == nil {
		shell = "/bin/bash"
	}
	for _, a := range []struct {
		file string
		mode int64
		line string
		make bool // where it is missing
	}{
		{"etc/passwd", 0o644, fmt.Sprintf("%s:x:%d:%d::/home/%s:%s", userName, userID, userID, userName, shell), true},
		{"etc/group", 0o644, fmt.Sprintf("%s:x:%d:", userName, userID), true},
		{"etc/shadow", 0o640, userName + ":!:19000:0:99999:7:::", false},
		{"etc/gshadow", 0o640, userName + ":!::", false},
	} {
		text, ok, err := t.read(a.file, 1<<20)
		if err != nil {
			return err
		}
		if !ok && !a.make || strings.HasPrefix(text, userName+":") || strings.Contains(text, "\n"+userName+":") {
			continue
		}
		if text == "" && a.file == "etc/passwd" {
			text = "root:x:0:0:root:/root:" + shell + "\n"
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		if err := t.edit(a.file, a.mode, text+a.line+"\n"); err != nil {
			return err
		}
	}
	for _, dir := range []string{"home/" + userName, "home/" + userName + "/work", "opt/hostedtoolcache"} {
		if err := t.folder(dir, 0o755, userID); err != nil {
			return err
		}
	}
	return nil
}

// edit replaces the text of a file, whose owner and mode stay; mode is that of a file that is new.
func (t *tree) edit(file string, mode int64, text string) error {
	dir, err := t.dir(strings.Split(filepath.Dir(file), "/"), true)
	if err != nil {
		return err
	}
	old := dir.children[filepath.Base(file)]
	if old == nil {
		return t.text(file, mode, text)
	}
	return t.keep(old.inode, int64(len(text)), bytes.NewReader([]byte(text)))
}

// epoch is the time that no file of an image is newer than, so that it does not say when it was built: Debian 12's own.
func epoch() time.Time { return time.Unix(1686355200, 0) }
