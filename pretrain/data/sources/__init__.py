"""What people have their images in: folders, tar archives, Parquet files, the binaries of CIFAR and STL-10."""
