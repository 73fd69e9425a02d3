package results

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/terraphim/tgr"
)

// S3Config says where a bucket is. URL is required.
type S3Config struct {
	tgr.Redacted

	URL       string // http or https, host, bucket, and perhaps a prefix: https://s3.example/bucket/tgr
	AccessKey string // "": the bucket is open to everybody
	SecretKey string
	Region    string // "": as the host says
}

// s3 keeps bytes as objects of a bucket.
type s3 struct {
	client         *minio.Client
	bucket, prefix string
}

// NewS3 returns Blobs that are objects of a bucket, which has to be there. It does no I/O.
func NewS3(c S3Config) (Blobs, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("%q is no address of a bucket, such as https://s3.example/bucket", c.URL)
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if bucket == "" {
		return nil, fmt.Errorf("%q names no bucket", c.URL)
	}
	o := &minio.Options{Secure: u.Scheme == "https", Region: c.Region, BucketLookup: minio.BucketLookupPath}
	if c.AccessKey != "" {
		o.Creds = credentials.NewStaticV4(c.AccessKey, c.SecretKey, "")
	}
	client, err := minio.New(u.Host, o)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", c.URL, err)
	}
	if prefix != "" {
		prefix += "/"
	}
	return &s3{client: client, bucket: bucket, prefix: prefix}, nil
}

func (b *s3) name(hash string) string { return b.prefix + hash[:2] + "/" + hash[2:] }

// noBytes is the hash of nothing, which needs no object: not all servers take one without bytes.
const noBytes = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

func (b *s3) Put(ctx context.Context, hash, file string) error {
	if hash == noBytes {
		return nil
	}
	_, err := b.client.FPutObject(ctx, b.bucket, b.name(hash), file, minio.PutObjectOptions{ContentType: "application/octet-stream"})
	return err
}

func (b *s3) Open(ctx context.Context, hash string, off, n int64) (io.ReadCloser, error) {
	if n == 0 {
		return http.NoBody, nil // a range of no bytes cannot be asked for
	}
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+n-1); err != nil {
		return nil, err
	}
	obj, err := b.client.GetObject(ctx, b.bucket, b.name(hash), o)
	if err != nil {
		return nil, absent(err)
	}
	return object{obj}, nil
}

// object says of an object that is not there what a file would.
type object struct{ *minio.Object }

func (o object) Read(p []byte) (int, error) {
	n, err := o.Object.Read(p)
	return n, absent(err)
}

func (b *s3) Has(ctx context.Context, hash string, size int64) (bool, error) {
	if size == 0 {
		return true, nil
	}
	info, err := b.client.StatObject(ctx, b.bucket, b.name(hash), minio.StatObjectOptions{})
	if err = absent(err); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.Size == size, err
}

func (b *s3) Remove(ctx context.Context, hash string) error {
	err := absent(b.client.RemoveObject(ctx, b.bucket, b.name(hash), minio.RemoveObjectOptions{}))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// absent makes fs.ErrNotExist of S3's word for it.
func absent(err error) error {
	if err != nil && minio.ToErrorResponse(err).Code == "NoSuchKey" {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}
