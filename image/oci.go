package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The kinds of BuildConfig.From, as they begin.
const (
	fromRegistry = "oci:"
	fromLayout   = "oci-layout:"
	fromArchive  = "docker-archive:"
)

const (
	maxLayers  = 512
	maxConfig  = 1 << 20 // bytes of an image's manifest and configuration
	maxPadding = 1 << 20 // bytes after the end of a layer's archive
)

// ImageConfig is what an OCI image says of the processes that are started in it.
type ImageConfig struct {
	Env        []string `json:"env,omitempty"` // NAME=value
	User       string   `json:"user,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
}

// openOCI finds the image for this kind of machine.
func openOCI(ctx context.Context, from string) (v1.Image, error) {
	platform := v1.Platform{OS: "linux", Architecture: "amd64"}
	switch kind, rest := kindOf(from); kind {
	case fromRegistry:
		ref, err := name.ParseReference(rest)
		if err != nil {
			return nil, err
		}
		return remote.Image(ref, remote.WithContext(ctx), remote.WithPlatform(platform), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	case fromLayout:
		index, err := layout.ImageIndexFromPath(rest)
		if err != nil {
			return nil, err
		}
		return pick(index, platform, 0)
	case fromArchive:
		return tarball.ImageFromPath(rest, nil)
	}
	return nil, errSource(from)
}

func errSource(from string) error {
	return fmt.Errorf("%q is no image: want %sREFERENCE, %sFOLDER or %sFILE", from, fromRegistry, fromLayout, fromArchive)
}

func kindOf(from string) (kind, rest string) {
	for _, kind := range []string{fromRegistry, fromLayout, fromArchive} {
		if rest, ok := strings.CutPrefix(from, kind); ok && rest != "" {
			return kind, rest
		}
	}
	return "", from
}

// pick finds the image of a platform in an index, which may hold others.
func pick(index v1.ImageIndex, platform v1.Platform, depth int) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		if d.Platform != nil && d.Platform.OS != "" && !d.Platform.Satisfies(platform) {
			continue
		}
		switch {
		case d.MediaType.IsImage():
			return index.Image(d.Digest)
		case d.MediaType.IsIndex() && depth < 3:
			inner, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			return pick(inner, platform, depth+1)
		}
	}
	return nil, fmt.Errorf("there is no image for %s", platform.String())
}

// ociRoot applies the layers of the image b.From.
func (b BuildConfig) ociRoot(ctx context.Context, t *tree, r *Root) error {
	im, err := openOCI(ctx, b.From)
	if err != nil {
		return err
	}
	digest, err := im.Digest()
	if err != nil {
		return err
	}
	r.From, r.Digest = b.From, digest.String()
	if size, err := im.Size(); err != nil || size > maxConfig {
		return errors.Join(err, fmt.Errorf("a manifest of %d bytes", size))
	}
	cf, err := im.ConfigFile()
	if err != nil {
		return fmt.Errorf("its configuration: %w", err)
	}
	if cf.OS != "" && cf.OS != "linux" || cf.Architecture != "" && cf.Architecture != "amd64" {
		return fmt.Errorf("it is for %s on %s, and machines are linux on amd64", cf.OS, cf.Architecture)
	}
	r.Config = &ImageConfig{Env: cf.Config.Env, User: cf.Config.User, WorkingDir: cf.Config.WorkingDir}
	layers, err := im.Layers()
	if err != nil {
		return err
	}
	if len(layers) > maxLayers || len(layers) != len(cf.RootFS.DiffIDs) {
		return fmt.Errorf("it has %d layers, at most %d are allowed, and its configuration names %d", len(layers), maxLayers, len(cf.RootFS.DiffIDs))
	}
	for i, l := range layers {
		if err := b.applyLayer(ctx, t, l, cf.RootFS.DiffIDs[i], fmt.Sprintf("layer %d of %d", i+1, len(layers))); err != nil {
			return err
		}
	}
	return nil
}

// applyLayer applies one layer, and checks that it is the one that the image's configuration names.
func (b BuildConfig) applyLayer(ctx context.Context, t *tree, l v1.Layer, want v1.Hash, step string) error {
	r, err := l.Uncompressed()
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	defer r.Close()
	if b.Progress != nil {
		b.Progress("unpack "+step, 0, 0)
	}
	hash := sha256.New()
	all := io.TeeReader(ctxReader{ctx, r}, hash)
	if err := t.apply(all); err != nil {
		return err
	}
	// What follows the archive's end counts, too: the source checks what it gives only when it was read to its end.
	n, err := io.Copy(io.Discard, io.LimitReader(all, maxPadding+1))
	switch got := hex.EncodeToString(hash.Sum(nil)); {
	case err != nil:
		return fmt.Errorf("%s: %w", step, err)
	case n > maxPadding:
		return fmt.Errorf("%s: it goes on after its end", step)
	case want.Algorithm != "sha256" || got != want.Hex:
		return fmt.Errorf("%s: it has SHA-256 %s, and the image's configuration says %s", step, got, want.Hex)
	}
	return nil
}

// SetEnv adds the environment that the image asks for to env, but for what a machine has to say itself.
func (c *ImageConfig) SetEnv(env map[string]string) {
	if c == nil {
		return
	}
	for _, kv := range c.Env {
		k, v, ok := strings.Cut(kv, "=")
		if ok && k != "" && !slices.Contains([]string{"HOME", "USER", "HOSTNAME"}, k) {
			env[k] = v
		}
	}
}
