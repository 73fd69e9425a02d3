package vault

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// A sealed value is a version byte, the id of its key, a nonce, and what AES-256-GCM makes of the value, with the scope
// and the name as additional data: a value that is moved to another row does not open.
const (
	sealVersion = 1
	keyBytes    = 32
	idBytes     = 8
	header      = 1 + idBytes
)

// key is one line of the key file.
type key struct {
	id   [idBytes]byte
	raw  []byte
	aead cipher.AEAD
}

func newKey(raw []byte) (key, error) {
	if len(raw) != keyBytes {
		return key{}, fmt.Errorf("a key has %d bytes, not %d", keyBytes, len(raw))
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return key{}, err
	}
	k := key{raw: raw}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		return key{}, err
	}
	sum := sha256.Sum256(append([]byte("tgr secrets key id\x00"), raw...))
	copy(k.id[:], sum[:])
	return k, nil
}

func randomKey() (key, error) {
	raw := make([]byte, keyBytes)
	rand.Read(raw) // never fails (crypto/rand, since Go 1.24)
	return newKey(raw)
}

// place is the additional data of a setting: each part with its length, so that no two places are the same bytes.
func place(k store.SettingKey) []byte {
	out := []byte("tgr secret\x00")
	out = binary.BigEndian.AppendUint64(out, uint64(k.RepoID))
	for _, part := range []string{k.Kind, k.Owner, k.Environment, k.Name} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return out
}

func (k key) seal(at store.SettingKey, value []byte) ([]byte, error) {
	out := append([]byte{sealVersion}, k.id[:]...)
	nonce := make([]byte, k.aead.NonceSize())
	rand.Read(nonce)
	return k.aead.Seal(append(out, nonce...), nonce, value, place(at)), nil
}

func (k key) open(at store.SettingKey, sealed []byte) ([]byte, error) {
	n := header + k.aead.NonceSize()
	if len(sealed) < n {
		return nil, errKey
	}
	value, err := k.aead.Open(nil, sealed[header:n], sealed[n:], place(at))
	if err != nil {
		return nil, errKey
	}
	return value, nil
}

// open returns the value of a secret. The lock is held.
func (v *Vault) open(r store.SettingRow) ([]byte, error) {
	err := errKey
	if len(r.Value) > header && r.Value[0] == sealVersion {
		for _, k := range v.keys {
			if [idBytes]byte(r.Value[1:header]) != k.id {
				continue
			}
			var value []byte
			if value, err = k.open(r.SettingKey, r.Value); err == nil {
				return value, nil
			}
		}
	}
	return nil, tgr.Errorf("vault.open", tgr.Internal, "the secret %s cannot be read: %w", r.Name, err)
}

// Open reads the keys, and checks that every stored secret opens with them.
func Open(ctx context.Context, c Config) (*Vault, error) {
	v := &Vault{store: c.Store, repo: c.Repo, file: c.KeyFile}
	var err error
	v.keys, err = readKeys(c.KeyFile)
	fresh := errors.Is(err, fs.ErrNotExist)
	if fresh {
		var k key
		if k, err = randomKey(); err == nil {
			v.keys = []key{k}
		}
	}
	if err != nil {
		return nil, err
	}
	_, err = c.Store.Reseal(ctx, func(r store.SettingRow) ([]byte, error) {
		if _, err := v.open(r); err != nil {
			if fresh {
				return nil, tgr.Errorf("vault.open", tgr.Invalid, "there are secrets, and the file %s with their key is not there", c.KeyFile)
			}
			return nil, err
		}
		return r.Value, nil
	})
	if err != nil {
		return nil, err
	}
	if fresh {
		return v, writeKeys(c.KeyFile, v.keys)
	}
	return v, nil
}

// Rotate makes a new key, seals every secret with it, and forgets the old ones. It returns how many secrets there are.
// Whenever it is interrupted, the file has the keys for what is in the database.
func (v *Vault) Rotate(ctx context.Context) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k, err := randomKey()
	if err != nil {
		return 0, err
	}
	keys := append([]key{k}, v.keys...)
	if err := writeKeys(v.file, keys); err != nil {
		return 0, err
	}
	v.keys = keys
	n, err := v.store.Reseal(ctx, func(r store.SettingRow) ([]byte, error) {
		value, err := v.open(r)
		if err != nil {
			return nil, err
		}
		return k.seal(r.SettingKey, value)
	})
	if err != nil {
		return 0, err
	}
	v.keys = keys[:1:1]
	return n, writeKeys(v.file, v.keys)
}

// maxKeys bounds a key file: a rotation that fails adds one.
const maxKeys = 100

// readKeys reads a key file: one key a line, in base64, the one that seals first. Nobody else may read it.
func readKeys(name string) ([]key, error) {
	info, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) ([]key, error) {
		return nil, tgr.Errorf("vault.key", tgr.Invalid, "the key file %s "+format, append([]any{name}, args...)...)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return bad("is not a file")
	case info.Mode().Perm()&0o077 != 0:
		return bad("may be read by others (its mode is %#o): chmod 600 it", info.Mode().Perm())
	case ok && int(owner.Uid) != os.Geteuid():
		return bad("belongs to another user")
	case info.Size() > maxKeys*64:
		return bad("is too large")
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var keys []key
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return bad("has a line that is not base64")
		}
		k, err := newKey(raw)
		if err != nil {
			return bad("is wrong: %v", err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return bad("has no key")
	}
	return keys, nil
}

// writeKeys replaces a key file as a whole, durably.
func writeKeys(name string, keys []key) (err error) {
	if len(keys) > maxKeys {
		return tgr.Errorf("vault.key", tgr.Limit, "the key file %s has %d keys: rotations have failed", name, len(keys)-1)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".tgr-key-*") // with mode 0600
	if err != nil {
		return fmt.Errorf("write the key file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write the key file %s: %w", name, err), os.Remove(f.Name()))
		}
	}()
	var b strings.Builder
	b.WriteString("# Keys of the secrets in the database. Without them those are lost; who has both has the secrets.\n")
	for _, k := range keys {
		b.WriteString(base64.StdEncoding.EncodeToString(k.raw) + "\n")
	}
	if _, err = f.WriteString(b.String()); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
