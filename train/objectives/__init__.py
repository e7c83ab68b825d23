"""What a stage minimises: named loss terms as sums over tokens, each with its global count."""
